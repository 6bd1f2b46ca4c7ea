;; A length and a place that overflow.
;; expect: fault 4294967295 bytes
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    i64.const -1))
