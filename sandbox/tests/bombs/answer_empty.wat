;; Nothing.
;; expect: fault not JSON
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    i64.const 0))
