;; A section that is longer than the file.
;; expect: refused malformed
(module binary "\00asm\01\00\00\00\01\7f")
