;; Tiny functions, as many as the limits let through.
;; expect: bounded
(module
  <<shell>>
  <<3990:(func (param i32) (result i32) local.get 0 i32.const 1 i32.add)>>)
