;; Chained blocks, as many as the limits let through.
;; expect: bounded
(module
  <<shell>>
  <<18:(func (param i32) <<2000:(block local.get 0 br_if 0)>>)>>)
