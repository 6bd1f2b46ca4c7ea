;; It asks for memory page by page for ever.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop (drop (memory.grow (i32.const 1))) (br 0)) unreachable))
