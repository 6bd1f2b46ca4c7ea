//! The `tidegate` binary as its users run it: `commands` (against `tidegate dev`) and `processes`
//! (control and edge apart).

mod commands;
mod processes;
mod world;
