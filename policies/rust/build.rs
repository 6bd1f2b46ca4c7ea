//! The memory's maximum has to be declared, 64 pages at the most; a stack of 64 KiB leaves the rest
//! of it to the heap.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("wasm32") {
        println!("cargo::rustc-link-arg-cdylib=--max-memory=4194304");
        println!("cargo::rustc-link-arg-cdylib=-zstack-size=65536");
    }
}
