;; A value of another type than the flag.
;; expect: fault flag's type
(module
  <<abi>>
  (data (i32.const 1024) "{\"value\":\"yes\"}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 15))))
