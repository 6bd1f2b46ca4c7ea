;; A path of 257 bytes.
;; expect: refused describe
(module
  <<memory>> <<version>> <<alloc>> <<evaluate>>
  (data (i32.const 1024) "{\"attributes\":[\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]}")
  (func (export "tidegate_describe") (result i64) (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 276))))
