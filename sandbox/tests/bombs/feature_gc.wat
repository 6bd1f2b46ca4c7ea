;; Collected memory.
;; expect: refused feature
(module
  <<shell>>
  (type $s (struct (field i32))))
