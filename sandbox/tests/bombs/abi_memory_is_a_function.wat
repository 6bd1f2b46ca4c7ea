;; `memory` is something else.
;; expect: refused abi
(module
  <<functions>>
  (func (export "memory")))
