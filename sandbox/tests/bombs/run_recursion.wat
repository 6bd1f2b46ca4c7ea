;; It calls itself.
;; expect: fault stack
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call $evaluate (local.get $in) (local.get $len))))
