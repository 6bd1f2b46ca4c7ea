;; Floating point, each result made canonical.
;; expect: bounded
(module
  <<shell>>
  <<8:(func (param f64) (result f64) local.get 0 <<10000:local.get 0 f64.div >>)>>)
