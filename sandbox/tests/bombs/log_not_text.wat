;; It logs bytes that are no text, and line ends.
;; expect: answer {"abstain":true}
(module
  (import "tidegate.v1" "log" (func $log (param i32 i32)))
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i64.store (i32.const 2048) (i64.const 0x0a0dff00fe1b5b41)) (call $log (i32.const 2048) (i32.const 8)) i64.const 16))
