;; Tables that grow.
;; expect: refused feature
(module
  <<shell>>
  (table 1 1024 funcref) (func (result i32) ref.null func i32.const 9 table.grow 0))
