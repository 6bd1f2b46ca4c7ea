;; One local more than allowed.
;; expect: refused locals
(module
  <<shell>>
  (func (local <<513:i32 >>)))
