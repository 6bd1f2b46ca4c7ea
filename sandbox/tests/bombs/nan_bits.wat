;; It answers with the bits of a NaN that the machine chose: sign and payload are always the same.
;; expect: answer {"value":0}
;; vector: {"type":"integer"}
(module
  <<abi>>
  (data (i32.const 1024) "{\"value\":0}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i32.store8 (i32.const 1033) (i32.add (i32.const 48) (i32.ne (i32.reinterpret_f32 (f32.div (f32.const 0) (f32.const 0))) (i32.const 0x7fc00000)))) (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 11))))
