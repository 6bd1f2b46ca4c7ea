;; Two tables.
;; expect: refused tables
(module
  <<shell>>
  (table 1 1 funcref) (table 1 1 funcref))
