;; It calls what is not there.
;; expect: fault trapped
(module
  <<abi>>
  (table 1 1 funcref)
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call_indirect (i32.const 0)) i64.const 16))
