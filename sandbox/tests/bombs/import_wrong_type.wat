;; `log` with a type of its own.
;; expect: refused import
(module
  (import "tidegate.v1" "log" (func (param i64)))
  <<shell>>
)
