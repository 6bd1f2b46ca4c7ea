;; Two calls in each call.
;; expect: fault fuel
(module
  <<abi>>
  (func $two (param i32) (if (local.get 0) (then (call $two (i32.sub (local.get 0) (i32.const 1))) (call $two (i32.sub (local.get 0) (i32.const 1))))))
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call $two (i32.const 40)) i64.const 16))
