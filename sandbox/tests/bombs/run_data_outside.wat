;; Its data lies outside of its memory.
;; expect: refused abi
(module
  <<shell>>
  (data (i32.const 65535) "xyz"))
