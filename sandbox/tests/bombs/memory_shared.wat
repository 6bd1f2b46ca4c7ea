;; A memory that threads share.
;; expect: refused feature
(module
  <<functions>>
  (memory (export "memory") 1 1 shared))
