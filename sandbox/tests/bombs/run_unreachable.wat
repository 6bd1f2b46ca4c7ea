;; It traps.
;; expect: fault unreachable
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    unreachable))
