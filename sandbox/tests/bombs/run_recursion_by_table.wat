;; It calls itself by way of a table.
;; expect: fault stack
(module
  <<abi>>
  (table 1 1 funcref) (elem (i32.const 0) func $evaluate)
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call_indirect (param i32 i32) (result i64) (local.get $in) (local.get $len) (i32.const 0))))
