;; A name of 100,000 bytes.
;; expect: refused name
(module
  <<shell>>
  (func (export "<<90000:n>>")))
