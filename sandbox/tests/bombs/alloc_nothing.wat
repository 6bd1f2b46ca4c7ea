;; It has no room for the input.
;; expect: fault memory
(module
  <<memory>> <<version>> <<describe>> <<evaluate>>
  (func $alloc (export "tidegate_alloc") (param i32) (result i32) i32.const 0))
