;; A function that leaves nothing where it promised a number.
;; expect: refused invalid
(module <<abi>> (func (export "evaluate") (param i32 i32) (result i64)))
