;; It calls itself with much on its stack.
;; expect: fault stack
(module
  <<abi>>
  (func $deep (param <<64:i64 >>) (result i64) (call $deep <<64:(local.get #) >>) <<64:local.get # i64.add >>)
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (call $deep <<64:(i64.const #) >>)))
