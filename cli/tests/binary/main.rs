//! The `tidegate` binary as its users run it: `commands` (against `tidegate dev`), `processes`
//! (control and edge apart), `authors` and `readme` (docs/POLICIES.md and README.md followed to the letter).

mod authors;
mod changes;
mod commands;
#[expect(dead_code, reason = "these tests open no event stream")]
#[path = "../../../e2e/src/ofrep_schema.rs"]
mod ofrep_schema;
mod people;
mod policies;
#[path = "../../../e2e/src/ports.rs"]
mod ports;
mod processes;
mod readme;
mod snapshot;
mod tenants;
mod world;
