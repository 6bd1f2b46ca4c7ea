;; A table without an end.
;; expect: refused table_max
(module
  <<shell>>
  (table 1 funcref))
