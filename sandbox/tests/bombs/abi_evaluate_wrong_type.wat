;; `evaluate` with a type of its own.
;; expect: refused abi
(module
  <<abi>>
  (func (export "evaluate") (param i64) (result i64) i64.const 0))
