;; It writes a page again and again.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br 0)) unreachable))
