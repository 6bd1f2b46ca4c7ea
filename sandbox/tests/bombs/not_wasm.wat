;; Text.
;; expect: refused malformed
(module binary "<!doctype html>")
