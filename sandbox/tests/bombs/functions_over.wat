;; Many tiny functions; 100,000 took 12 s.
;; expect: refused functions
(module
  <<shell>>
  <<3997:(func)>>)
