//! The evaluator as wasm: two thin doors to `rules`, nothing of its own.
//!
//! `abi.rs` is what the edge loads into wasmtime, and what any host that can call wasm may use.
//! With the feature `browser`, `browser.rs` offers the same to the npm package in `npm/`: without
//! `full` the core alone, which has no `std` (`bare.rs`).
#![cfg_attr(all(target_arch = "wasm32", not(feature = "full")), no_std)]

#[cfg(all(target_arch = "wasm32", not(feature = "full")))]
extern crate alloc;

#[cfg(all(target_arch = "wasm32", not(feature = "browser")))]
mod abi;
#[cfg(all(target_arch = "wasm32", not(feature = "full")))]
mod bare;
#[cfg(all(target_arch = "wasm32", feature = "browser"))]
mod browser;
