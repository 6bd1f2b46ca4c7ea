;; A variant that the flag does not have.
;; expect: fault no variant
(module
  <<abi>>
  (data (i32.const 1024) "{\"variant\":\"admin\"}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 19))))
