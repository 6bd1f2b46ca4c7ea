;; It logs what is not its own.
;; expect: fault outside of its memory
(module
  (import "tidegate.v1" "log" (func $log (param i32 i32)))
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call $log (i32.const 65530) (i32.const 100)) i64.const 16))
