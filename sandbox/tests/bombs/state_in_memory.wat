;; It grows in every call and answers with its size.
;; expect: answer {"value":1}
;; vector: {"type":"integer"}
(module
  <<abi>>
  (data (i32.const 1024) "{\"value\":0}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (i32.store8 (i32.const 1033) (i32.add (i32.const 48) (memory.size))) (drop (memory.grow (i32.const 1))) (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 11))))
