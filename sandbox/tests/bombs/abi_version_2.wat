;; An ABI of the future.
;; expect: refused abi
(module
  <<memory>> <<alloc>> <<describe>> <<evaluate>>
  (func (export "tidegate_abi") (result i32) i32.const 2))
