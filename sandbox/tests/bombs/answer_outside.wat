;; An answer outside of its memory.
;; expect: fault not all in its memory
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    i64.const 0xffffffff00000010))
