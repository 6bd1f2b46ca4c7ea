;; It copies a page again and again.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop (memory.copy (i32.const 0) (i32.const 1) (i32.const 65535)) (br 0)) unreachable))
