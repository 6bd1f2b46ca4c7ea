;; Each waits for the one before; at a unit each, a million took longer than the deadline.
;; expect: fault fuel
(module
  <<abi>>
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (local $x f64)
    (local.set $x (f64.const 1.7))
    (loop (local.set $x (local.get $x) <<1000:f64.sqrt >>) (br 0)) unreachable))
