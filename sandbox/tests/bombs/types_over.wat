;; A type section that never ends.
;; expect: refused types
(module
  <<shell>>
  <<998:(type (func (param i32)))>>)
