;; It uses every page that it may have.
;; expect: answer {"abstain":true}
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (local $i i32) (drop (memory.grow (i32.const 63))) (loop (i32.store (i32.add (local.get $i) (i32.const 2048)) (i32.const 1)) (local.set $i (i32.add (local.get $i) (i32.const 4096))) (br_if 0 (i32.lt_u (local.get $i) (i32.const 4190000)))) i64.const 16))
