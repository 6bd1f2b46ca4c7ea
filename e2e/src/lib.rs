//! Whole-system tests and what they share. `world` starts control and edge, `http` speaks to them,
//! `nats`, `postgres` and `etcd` are servers that can be mistreated, `oidc` is an identity provider, `ofrep_schema` holds what the edge says against the
//! protocol, `run` keeps what is searched for secrets when all tests have run, `tap` does so between the edge and clients of other languages. The tests are in
//! `tests/`, clients
//! of other languages in `interop/`; how to run them is in `README.md`.

pub mod etcd;
pub mod http;
pub mod nats;
pub mod ofrep_schema;
pub mod oidc;
pub mod page;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod tap;
pub mod world;
pub mod writes;

pub use postgres::{ports, run};
