;; No answer in an object.
;; expect: fault one of variant
(module
  <<abi>>
  (data (i32.const 1024) "{\"reason\":\"none\"}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 17))))
