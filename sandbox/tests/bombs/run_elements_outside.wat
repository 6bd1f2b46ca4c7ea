;; Its table is filled past its end.
;; expect: refused abi
(module
  <<shell>>
  (table 1 1 funcref) (func $f) (elem (i32.const 1) func $f))
