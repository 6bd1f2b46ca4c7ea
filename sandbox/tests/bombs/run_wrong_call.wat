;; It calls something by the wrong type.
;; expect: fault trapped
(module
  <<abi>>
  (table 1 1 funcref) (elem (i32.const 0) func $evaluate)
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call_indirect (param i32) (i32.const 0) (i32.const 0)) i64.const 16))
