;; It points outside of its memory.
;; expect: refused describe
(module
  <<memory>> <<version>> <<alloc>> <<evaluate>>
  (func (export "tidegate_describe") (result i64) i64.const -1))
