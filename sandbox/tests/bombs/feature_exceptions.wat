;; Exceptions.
;; expect: refused feature
(module
  <<shell>>
  (tag $e) (func throw $e))
