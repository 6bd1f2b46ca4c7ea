;; A name of 90,000 bytes.
;; expect: refused import
(module
  (import "<<90000:n>>" "x" (func))
  <<shell>>
)
