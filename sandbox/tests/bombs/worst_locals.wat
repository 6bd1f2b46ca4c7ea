;; If and else over 400 locals.
;; expect: bounded
(module
  <<shell>>
  <<15:(func (param i32) (local <<400:i64 >>) <<1200:local.get 0 (if (then local.get 1 local.set 2) (else local.get 3 local.set 1))>>)>>)
