//! An edge as its clients and its operators meet it: over sockets, on disk.

mod events;
mod ofrep;
mod serving;
mod sync;
mod world;
