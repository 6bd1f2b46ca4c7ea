;; Loads and stores, each with its check.
;; expect: bounded
(module
  <<shell>>
  <<8:(func (param i32) <<2800:local.get 0 local.get 0 i64.load offset=# i64.store >>)>>)
