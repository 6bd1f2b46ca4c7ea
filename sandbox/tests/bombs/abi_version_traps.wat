;; It traps before it is asked anything.
;; expect: refused abi
(module
  <<memory>> <<alloc>> <<describe>> <<evaluate>>
  (func (export "tidegate_abi") (result i32) unreachable))
