;; Fraud guard as wasm's text: somebody whose score is above `params.max` is sent to `review`,
;; everybody else is left to the next rule. Whole numbers only.
;;
;; It looks for `"score":` and `"max":` in the input's bytes. Texts that people write cannot forge
;; them: in a JSON text the quote before the colon is written `\"`. The attributes come before the
;; params, and only the declared ones are there.
(module
  (memory (export "memory") 1 1)
  (data (i32.const 0) "{\"attributes\":[\"user.score\"]}")
  (data (i32.const 64) "{\"abstain\":true}")
  (data (i32.const 128) "{\"variant\":\"review\",\"reason\":\"the score is above the maximum\"}")
  (data (i32.const 256) "\"score\":")
  (data (i32.const 272) "\"max\":")

  (func (export "tidegate_abi") (result i32) i32.const 1)

  ;; The input is all that is ever allocated: 16 KiB at 4096.
  (func (export "tidegate_alloc") (param $len i32) (result i32) i32.const 4096)

  (func (export "tidegate_describe") (result i64) (call $packed (i32.const 0) (i32.const 29)))

  (func (export "evaluate") (param $at i32) (param $len i32) (result i64)
    (local $score i64)
    (local $max i64)
    (local.set $score
      (call $number (local.get $at) (local.get $len) (i32.const 256) (i32.const 8) (i64.const -1)))
    (local.set $max
      (call $number (local.get $at) (local.get $len) (i32.const 272) (i32.const 6) (i64.const 3)))
    (if (result i64) (i64.gt_s (local.get $score) (local.get $max))
      (then (call $packed (i32.const 128) (i32.const 62)))
      (else (call $packed (i32.const 64) (i32.const 16)))))

  (func $packed (param $at i32) (param $len i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $len))))

  ;; The digits behind the first place where the name stands, or $otherwise.
  (func $number (param $at i32) (param $len i32) (param $name i32) (param $name_len i32)
      (param $otherwise i64) (result i64)
    (local $end i32)
    (local $digit i32)
    (local $value i64)
    (local.set $end (i32.sub (i32.add (local.get $at) (local.get $len)) (local.get $name_len)))
    (block $found
      (loop $next
        (if (i32.ge_u (local.get $at) (local.get $end)) (then (return (local.get $otherwise))))
        (br_if $found (call $same (local.get $at) (local.get $name) (local.get $name_len)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (local.set $at (i32.add (local.get $at) (local.get $name_len)))
    (local.set $value (local.get $otherwise))
    (local.set $digit (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))
    (if (i32.lt_u (local.get $digit) (i32.const 10)) (then (local.set $value (i64.const 0))))
    (loop $digits
      (if (i32.lt_u (local.get $digit) (i32.const 10))
        (then
          (local.set $value
            (i64.add (i64.mul (local.get $value) (i64.const 10)) (i64.extend_i32_u (local.get $digit))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (local.set $digit (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))
          (br $digits))))
    (local.get $value))

  (func $same (param $a i32) (param $b i32) (param $len i32) (result i32)
    (loop $next
      (if (i32.eqz (local.get $len)) (then (return (i32.const 1))))
      (if (i32.ne (i32.load8_u (local.get $a)) (i32.load8_u (local.get $b)))
        (then (return (i32.const 0))))
      (local.set $a (i32.add (local.get $a) (i32.const 1)))
      (local.set $b (i32.add (local.get $b) (i32.const 1)))
      (local.set $len (i32.sub (local.get $len) (i32.const 1)))
      (br $next))
    unreachable))
