;; One byte more than allowed.
;; expect: fault 1025 bytes
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    i64.const 1025))
