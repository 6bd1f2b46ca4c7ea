;; It logs all of its memory, again and again.
;; expect: fault fuel
(module
  (import "tidegate.v1" "log" (func $log (param i32 i32)))
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop (call $log (i32.const 0) (i32.const 65536)) (br 0)) unreachable))
