;; Two memories.
;; expect: refused memories
(module
  <<shell>>
  (memory 1 1))
