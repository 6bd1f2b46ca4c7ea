;; It writes all of its memory in one instruction.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (drop (memory.grow (i32.const 63))) (memory.fill (i32.const 0) (i32.const 1) (i32.const 4194304)) i64.const 16))
