//! An edge as its clients and its operators meet it: over sockets, on disk.

mod events;
mod http_feed;
mod keys;
mod ofrep;
#[path = "../../../e2e/src/ofrep_schema.rs"]
mod ofrep_schema;
mod rot;
mod sdk;
mod serving;
mod sync;
mod usage;
mod world;
