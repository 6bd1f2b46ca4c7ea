;; It reads the last byte of an address space.
;; expect: fault out of bounds
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (drop (i32.load offset=4294967295 (i32.const -1))) i64.const 16))
