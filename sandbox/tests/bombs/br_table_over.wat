;; 20,000 targets took 13 s to compile.
;; expect: refused br_table
(module
  <<shell>>
  (func (param i32) (block local.get 0 (br_table <<513:0 >> 0))))
