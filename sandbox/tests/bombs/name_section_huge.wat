;; Names for tools may be long; they are cut off unread.
;; expect: admitted
(module
  <<shell>>
  (@custom "name" "<<200000:n>>"))
