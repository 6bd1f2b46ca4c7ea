;; It talks for ever.
;; expect: fault more than 64 times
(module
  (import "tidegate.v1" "log" (func $log (param i32 i32)))
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop (call $log (i32.const 0) (i32.const 1)) (br 0)) unreachable))
