;; Calls by table, each with its checks.
;; expect: bounded
(module
  <<shell>>
  (table 16 16 funcref) (type $f (func (param i32)))
  <<8:(func (param i32) <<4500:local.get 0 local.get 0 call_indirect (type $f) >>)>>)
