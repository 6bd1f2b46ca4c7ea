;; Jump tables, as many as the limits let through.
;; expect: bounded
(module
  <<shell>>
  <<9:(func (param i32) <<55:(block local.get 0 (br_table <<511:0 >> 0))>>)>>)
