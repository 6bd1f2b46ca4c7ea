;; Straight lines that keep many values alive.
;; expect: bounded
(module
  <<shell>>
  <<9:(func (param i64) (result i64) <<4000:local.get 0 i64.const # >> <<7999:i64.xor >>)>>)
