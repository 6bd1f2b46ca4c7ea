;; It never ends.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop (br 0)) unreachable))
