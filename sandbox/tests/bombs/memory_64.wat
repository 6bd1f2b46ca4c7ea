;; A memory of 64 bits.
;; expect: refused feature
(module
  <<functions>>
  (memory (export "memory") i64 1 1))
