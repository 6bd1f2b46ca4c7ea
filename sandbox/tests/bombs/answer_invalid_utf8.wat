;; A text that is no text.
;; expect: fault not JSON
(module
  <<abi>>
  (data (i32.const 1024) "\7b\22\76\61\72\69\61\6e\74\22\3a\22\ff\fe\22\7d")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 16))))
