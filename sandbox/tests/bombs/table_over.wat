;; One element more than allowed.
;; expect: refused table
(module
  <<shell>>
  (table 1025 1025 funcref))
