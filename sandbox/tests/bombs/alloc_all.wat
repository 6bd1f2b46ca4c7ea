;; It takes all the memory there is.
;; expect: answer {"abstain":true}
(module
  <<memory>> <<version>> <<describe>> <<evaluate>>
  (func $alloc (export "tidegate_alloc") (param i32) (result i32) (drop (memory.grow (i32.const 63))) (i32.const 2097152)))
