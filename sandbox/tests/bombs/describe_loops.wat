;; It never ends.
;; expect: refused describe
(module
  <<memory>> <<version>> <<alloc>> <<evaluate>>
  (func (export "tidegate_describe") (result i64) (loop (br 0)) unreachable))
