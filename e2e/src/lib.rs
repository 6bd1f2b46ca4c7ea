//! Whole-system tests and what they share. `ofrep_schema` holds answers against the protocol,
//! `world` starts control and edge. The tests are in `tests/`, clients of other languages in
//! `interop/`; how to run them is in `README.md`.

pub mod ofrep_schema;
