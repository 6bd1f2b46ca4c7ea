;; It writes past its end.
;; expect: fault out of bounds
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (memory.fill (i32.const 65530) (i32.const 1) (i32.const 10)) i64.const 16))
