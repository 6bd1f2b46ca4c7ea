;; Nested loops, as many as the limits let through.
;; expect: bounded
(module
  <<shell>>
  <<31:(func (param i32) <<9:<<127:(loop local.get 0 br_if 0 >><<127:)>>>>)>>)
