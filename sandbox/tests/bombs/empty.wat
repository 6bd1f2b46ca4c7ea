;; Nothing at all.
;; expect: refused malformed
(module binary "")
