;; And results.
;; expect: refused results
(module
  <<shell>>
  (type (func (result <<17:i64 >>))))
