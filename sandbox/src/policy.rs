//! Wasm of strangers: the policies that rule authors upload.
//!
//! Promises: a module is looked at (`shape.rs`) before anything compiles it; it is compiled in a
//! process of its own under limits (`helper.rs`); it runs in a fresh store under fuel, a deadline
//! and a memory cap (`run.rs`), so one call leaves nothing behind for the next; whatever it does is
//! a `Fault`, never a panic. Never gives it a clock, randomness, a file, or what it did not declare
//! that it reads. Admission (`admission.rs`) runs it with exactly the budget of production. Every
//! limit is in the one table, `rules::limits`.
//!
//! The ABI for authors is docs/POLICIES.md, why it is built like this is docs/adr/0007.

mod admission;
mod answer;
mod confine;
#[cfg(test)]
mod fuzz;
pub mod helper;
mod run;
mod shape;

pub use admission::{Vector, VectorResult, Verdict};
pub use run::{Called, Fault, LoadError, Policies, Policy, PolicyConfig};
pub use shape::{Refused, Shape, check};
