;; A table of four billion.
;; expect: refused table
(module
  <<shell>>
  (table 1 4294967295 funcref))
