;; A section that says it has 4 GiB.
;; expect: refused malformed
(module binary "\00asm\01\00\00\00\0a\ff\ff\ff\ff\0f")
