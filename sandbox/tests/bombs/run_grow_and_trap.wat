;; It asks for all the memory there is and does not take no for an answer.
;; expect: fault memory
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable)) i64.const 16))
