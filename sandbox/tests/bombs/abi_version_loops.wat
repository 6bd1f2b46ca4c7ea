;; It never says which ABI it speaks.
;; expect: refused abi
(module
  <<memory>> <<alloc>> <<describe>> <<evaluate>>
  (func (export "tidegate_abi") (result i32) (loop (br 0)) unreachable))
