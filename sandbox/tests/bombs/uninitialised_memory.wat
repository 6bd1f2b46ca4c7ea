;; It looks for what another call left in new memory.
;; expect: answer {"value":0}
;; vector: {"type":"integer"}
(module
  <<abi>>
  (data (i32.const 1024) "{\"value\":0}")
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (local $i i32) (local $sum i32) (drop (memory.grow (i32.const 3))) (local.set $i (i32.const 65536)) (loop (local.set $sum (i32.or (local.get $sum) (i32.load (local.get $i)))) (i32.store (local.get $i) (i32.const -1)) (local.set $i (i32.add (local.get $i) (i32.const 16))) (br_if 0 (i32.lt_u (local.get $i) (i32.const 262144)))) (i32.store8 (i32.const 1033) (i32.add (i32.const 48) (i32.ne (local.get $sum) (i32.const 0)))) (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 11))))
