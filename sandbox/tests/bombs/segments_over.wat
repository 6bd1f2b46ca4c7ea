;; More segments than allowed: each costs the host a copy in every call.
;; expect: refused segments
(module
  <<shell>>
  <<1025:(data (i32.const 0) "x")>>)
