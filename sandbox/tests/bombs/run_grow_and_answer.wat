;; It may ask, is refused, and answers.
;; expect: answer {"abstain":true}
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (drop (memory.grow (i32.const -1))) i64.const 16))
