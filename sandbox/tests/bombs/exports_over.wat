;; More exports than allowed.
;; expect: refused exports
(module
  <<shell>>
  (func $f) <<64:(export "e#" (func $f))>>)
