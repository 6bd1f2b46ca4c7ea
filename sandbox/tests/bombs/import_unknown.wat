;; Something that the host does not have.
;; expect: refused import
(module
  (import "tidegate.v1" "fetch" (func (param i32 i32)))
  <<shell>>
)
