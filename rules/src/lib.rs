//! What a flag means: the authoring model, its compiler, the evaluator and the wire formats.
//!
//! Promises: no I/O, no clock, no randomness (time and identifiers are inputs), no panic on any
//! input, and the same input gives the same answer, byte for byte, natively and in wasm.
//!
//! Reading order: `model` (what an author writes), `compile` (model to arenas), `ruleset` (the
//! arenas: wire form and run-time form at once), `eval` (one flag for one context), `answer`
//! (OFREP bytes), `blob` (what an edge loads), `client` (what a browser loads), `head` (the signed
//! record that names both).
//!
//! Without the feature `full` there is only the core: what evaluates rulesets of the core tier
//! (`ruleset::Tier`), for browsers. It gives the same answers or none.
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
// The core is for browsers, where `std` alone would be a third of the download.
#![cfg_attr(not(feature = "full"), no_std)]
#![cfg_attr(
    not(feature = "full"),
    allow(dead_code, unused, reason = "what only the rest uses is not cut out line by line")
)]

extern crate alloc;

pub mod answer;
#[cfg(feature = "full")]
pub mod blob;
#[cfg(feature = "full")]
pub mod bus;
#[cfg(feature = "full")]
pub mod cel;
pub(crate) mod chain;
pub mod clause;
#[cfg(feature = "full")]
pub mod client;
#[cfg(feature = "full")]
pub mod compile;
pub mod context;
pub mod date;
pub mod decimal;
#[cfg(feature = "full")]
pub mod etcd;
pub mod eval;
#[cfg(feature = "full")]
pub mod flagd;
pub(crate) mod frame;
pub mod hash;
#[cfg(feature = "full")]
pub mod head;
#[cfg(feature = "full")]
pub mod keys;
pub mod limits;
#[cfg(feature = "full")]
pub mod logic;
pub mod model;
#[cfg(feature = "full")]
pub mod policy;
#[cfg(feature = "full")]
pub mod references;
pub mod ruleset;
#[cfg(feature = "full")]
pub mod sample;
#[cfg(feature = "full")]
pub mod secret;
pub mod split;
#[cfg(feature = "full")]
pub mod trace;
#[cfg(feature = "full")]
pub mod usage;
pub mod version;
mod wire;

/// Whether this build has what the core leaves out.
pub(crate) const FULL: bool = cfg!(feature = "full");
