;; It divides by zero.
;; expect: fault divide by zero
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (drop (i32.div_u (i32.const 1) (i32.const 0))) i64.const 16))
