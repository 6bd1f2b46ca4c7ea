;; More data than allowed.
;; expect: refused data
(module
  <<functions>>
  (memory 2 2) (data (i32.const 0) "<<65537:x>>"))
