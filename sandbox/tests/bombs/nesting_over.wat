;; 11,000 nested loops took 254 MiB.
;; expect: refused nesting
(module
  <<shell>>
  (func <<129:(loop >><<129:)>>))
