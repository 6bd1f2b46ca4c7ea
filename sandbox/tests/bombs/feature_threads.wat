;; An atomic instruction.
;; expect: refused feature
(module
  <<shell>>
  (func (result i32) i32.const 0 i32.atomic.load))
