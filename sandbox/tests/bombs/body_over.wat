;; A straight line of more than 32 KiB.
;; expect: refused body
(module
  <<shell>>
  (func <<11000:i32.const 0 drop >>))
