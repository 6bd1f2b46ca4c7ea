;; A memory that may grow for ever.
;; expect: refused memory_max
(module
  <<functions>>
  (memory (export "memory") 1))
