;; Lengths that overflow.
;; expect: fault fuel
(module
  (import "tidegate.v1" "log" (func $log (param i32 i32)))
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call $log (i32.const -1) (i32.const -1)) i64.const 16))
