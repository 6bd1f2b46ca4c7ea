//! Wasm policies through the whole house: from an upload to an answer, what becomes of their
//! failures, where the limits are, and that everybody who runs one gets the same bytes.

mod admission;
mod bytes;
mod faults;
mod limits;
mod path;
mod servers;
mod support;
