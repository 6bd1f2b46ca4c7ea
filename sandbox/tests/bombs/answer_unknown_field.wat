;; A field that nobody asked for.
;; expect: fault unknown
(module
  <<abi>>
  (data (i32.const 1024) "{\"abstain\":true,\"set\":1}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 24))))
