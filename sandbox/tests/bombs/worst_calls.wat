;; Calls, as many as the limits let through.
;; expect: bounded
(module
  <<shell>>
  (func $f (param i64 i64 i64 i64) (result i64) i64.const 0)
  <<11:(func (param i64) (result i64) i64.const 0 <<2700:local.get 0 local.get 0 local.get 0 call $f >>)>>)
