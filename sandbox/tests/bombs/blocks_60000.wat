;; The shape of wasmtime#4923 as it was reported.
;; expect: refused size
(module
  <<shell>>
  (func (param i32) <<60000:(block local.get 0 br_if 0)>>))
