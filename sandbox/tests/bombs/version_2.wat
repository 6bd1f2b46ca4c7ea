;; A version that does not exist.
;; expect: refused malformed
(module binary "\00asm\02\00\00\00")
