;; One page more than allowed.
;; expect: refused memory
(module
  <<functions>>
  (memory (export "memory") 1 65))
