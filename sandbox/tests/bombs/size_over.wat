;; One byte more than a module may have.
;; expect: refused size
(module (@custom "x" "<<262131:x>>"))
