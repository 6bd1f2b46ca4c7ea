;; All of its memory as an answer.
;; expect: fault 65536 bytes
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    i64.const 65536))
