;; A function that runs before anybody calls.
;; expect: refused start
(module
  <<shell>>
  (func $s (loop (br 0))) (start $s))
