;; It never says where.
;; expect: fault fuel
(module
  <<memory>> <<version>> <<describe>> <<evaluate>>
  (func $alloc (export "tidegate_alloc") (param i32) (result i32) (loop (br 0)) unreachable))
