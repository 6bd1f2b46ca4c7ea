;; Functions with very many parameters.
;; expect: refused parameters
(module
  <<shell>>
  (func (param <<65:i64 >>)))
