;; An answer that reaches past the end.
;; expect: fault not all in its memory
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    i64.const 0x0000fff800000010))
