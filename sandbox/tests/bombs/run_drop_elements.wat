;; It gives back a segment again and again, which is work of the host; at a unit each, the deadline came first.
;; expect: fault fuel
(module
  <<abi>>
  (table 1 1 funcref) (elem func $evaluate)
  (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
    (loop <<1000:elem.drop 0 >> (br 0)) unreachable))
