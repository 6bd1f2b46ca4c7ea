//! An edge as its clients and its operators meet it: over sockets, on disk.

mod events;
mod http_feed;
mod ofrep;
mod serving;
mod sync;
mod world;
