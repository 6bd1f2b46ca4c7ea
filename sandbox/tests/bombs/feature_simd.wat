;; SIMD.
;; expect: refused feature
(module
  <<shell>>
  (func (result i32) v128.const i64x2 1 1 i32x4.extract_lane 0))
