;; No exports at all.
;; expect: refused abi
(module
  (memory 1 1)
)
