;; A policy in the text format of WebAssembly: `tidegate policy test policy.wat` runs it.
;; It answers the variant "on" for everybody; docs/POLICIES.md says what it is given and may answer.
(module
  (memory (export "memory") 1 16)
  (data (i32.const 16) "{\"attributes\":[\"country\"]}")
  (data (i32.const 256) "{\"variant\":\"on\",\"reason\":\"the template says so\"}")
  (func (export "tidegate_abi") (result i32) (i32.const 1))
  ;; Where the host writes the input, of which there is one per call.
  (func (export "tidegate_alloc") (param $len i32) (result i32) (i32.const 4096))
  ;; The place (high half) and the length (low half) of what it reads: 16, 26 bytes.
  (func (export "tidegate_describe") (result i64)
    (i64.or (i64.shl (i64.const 16) (i64.const 32)) (i64.const 26)))
  ;; The place and the length of the answer: 256, 48 bytes.
  (func (export "evaluate") (param $at i32) (param $len i32) (result i64)
    (i64.or (i64.shl (i64.const 256) (i64.const 32)) (i64.const 48))))
