;; Pages of another size.
;; expect: refused feature
(module
  <<functions>>
  (memory (export "memory") 1 1 (pagesize 1)))
