;; A tail call: recursion that needs no stack.
;; expect: refused feature
(module
  <<shell>>
  (func $f return_call $f))
