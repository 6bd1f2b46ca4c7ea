;; A number that no integer can hold.
;; expect: fault trapped
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (drop (i32.trunc_f64_s (f64.const 1e300))) i64.const 16))
