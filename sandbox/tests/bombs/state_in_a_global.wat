;; It counts its calls; every call is its first.
;; expect: answer {"value":1}
;; vector: {"type":"integer"}
(module
  <<abi>>
  (global $calls (mut i32) (i32.const 0)) (data (i32.const 1024) "{\"value\":0}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1))) (i32.store8 (i32.const 1033) (i32.add (i32.const 48) (global.get $calls))) (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 11))))
