;; Segments that fill the same table again and again.
;; expect: refused elements
(module
  <<shell>>
  (table 1024 1024 funcref) (func $f)
  <<5:(elem (i32.const 0) func <<1024:$f >>)>>)
