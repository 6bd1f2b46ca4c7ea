;; One block more than a function may have; 60,000 took 45 s to compile.
;; expect: refused blocks
(module
  <<shell>>
  (func <<2001:(block)>>))
