//! Wasm of strangers: the policies that rule authors upload.
//!
//! Promises: a module is looked at (`shape.rs`) before anything compiles it; it is compiled in a
//! process of its own under limits (`helper.rs`); it runs in a fresh store under fuel, a deadline
//! and a memory cap (`run.rs`), so one call leaves nothing behind for the next; whatever it does is
//! a `Fault`, never a panic. Never gives it a clock, randomness, a file, or what it did not declare
//! that it reads. Admission (`admission.rs`) runs it with exactly the budget of production.
//!
//! The ABI for authors is docs/POLICIES.md, why it is built like this is docs/adr/0007.

mod admission;
mod answer;
#[cfg(test)]
mod fuzz;
pub mod helper;
mod run;
mod shape;

pub use admission::{Vector, VectorResult, Verdict};
pub use run::{Called, Fault, LoadError, Policies, Policy, PolicyConfig};
pub use shape::{Refused, Shape, check};

/// What one call may use. Every limit is tested at n and at n + 1.
pub mod budget {
    use std::time::Duration;

    pub const FUEL: u64 = 1_000_000;
    /// Real time, and the only limit that depends on the machine's load.
    pub const DEADLINE: Duration = Duration::from_millis(5);
    pub const MEMORY_BYTES: usize = 4 * 1024 * 1024;
    pub const STACK_BYTES: usize = 512 * 1024;
    pub const INPUT_BYTES: usize = 16 * 1024;
    pub const OUTPUT_BYTES: usize = 1024;
    pub const LOG_BYTES: usize = 256;
    pub const HOST_CALLS: u32 = 64;
    /// Of every host call, and one more for each byte that it hands over.
    pub const HOST_CALL_FUEL: u64 = 1_000;
    /// Calls that run at once in a process; the next one is told that it is busy.
    pub const CALLS_AT_ONCE: u32 = 64;
    pub const ATTRIBUTES: usize = 64;
    pub const ATTRIBUTE_BYTES: usize = 256;
    pub const REASON_BYTES: usize = 200;
}
