;; It asks itself where.
;; expect: fault stack
(module
  <<memory>> <<version>> <<describe>> <<evaluate>>
  (func $alloc (export "tidegate_alloc") (param i32) (result i32) (call $alloc (local.get 0))))
