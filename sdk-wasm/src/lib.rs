//! The evaluator as wasm: two thin doors to `rules`, nothing of its own.
//!
//! `abi.rs` is what the edge loads into wasmtime, and what any host that can call wasm may use.
//! With the feature `bindgen`, `browser.rs` offers the same to JavaScript through wasm-bindgen.

#[cfg(all(target_arch = "wasm32", not(feature = "bindgen")))]
mod abi;
#[cfg(feature = "bindgen")]
mod browser;
