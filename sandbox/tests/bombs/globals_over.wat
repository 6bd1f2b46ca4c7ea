;; More globals than allowed.
;; expect: refused globals
(module
  <<shell>>
  <<1001:(global i32 i32.const 0)>>)
