;; References to the host.
;; expect: refused feature
(module
  <<shell>>
  (func (param externref)))
