;; It fills no bytes at all, which is work of the host; at a unit each, the deadline came first.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop <<1000:(memory.fill (i32.const 0) (i32.const 0) (i32.const 0)) >> (br 0)) unreachable))
