;; A memory of the host.
;; expect: refused import
(module
  (import "tidegate.v1" "log" (memory 1 1))
  <<functions>>
)
