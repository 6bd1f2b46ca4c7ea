//! What control promises over HTTP, against a real server and a real database; one binary, so
//! that it is linked once.

mod attacks;
mod audit;
mod change_sets;
mod clients;
mod documents;
mod edge_keys;
mod four_eyes;
mod full;
mod growth;
mod identity;
mod impact;
mod keys;
mod lifecycle;
mod limits;
mod matrix;
mod promotions;
mod protection;
mod races;
mod relay;
mod repeated;
mod routes;
mod secrets;
mod shutdown;
mod usage;
mod versions;
mod walls;
#[path = "../world/mod.rs"]
mod world;
