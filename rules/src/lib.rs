//! What a flag means: the authoring model, its compiler, the evaluator and the wire formats.
//!
//! Promises: no I/O, no clock, no randomness (time and identifiers are inputs), no panic on any
//! input, and the same input gives the same answer, byte for byte, natively and in wasm.
//!
//! Reading order: `model` (what an author writes), `compile` (model to arenas), `ruleset` (the
//! arenas: wire form and run-time form at once), `eval` (one flag for one context), `answer`
//! (OFREP bytes), `blob` (what an edge loads), `client` (what a browser loads), `head` (the signed
//! record that names both).
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]
#![forbid(unsafe_code)]

pub mod answer;
pub mod blob;
pub mod bus;
pub mod cel;
pub mod clause;
pub mod client;
pub mod compile;
pub mod context;
pub mod date;
pub mod decimal;
pub mod etcd;
pub mod eval;
pub mod flagd;
pub mod hash;
pub mod head;
pub mod keys;
pub mod limits;
pub mod logic;
pub mod model;
pub mod policy;
pub mod ruleset;
pub mod secret;
pub mod split;
pub mod trace;
pub mod version;
