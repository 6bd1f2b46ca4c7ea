;; The input would reach past the end.
;; expect: fault no room
(module
  <<memory>> <<version>> <<describe>> <<evaluate>>
  (func $alloc (export "tidegate_alloc") (param i32) (result i32) i32.const 65535))
