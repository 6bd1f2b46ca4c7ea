//! `tidegate openapi`: the admin API's document, as control serves it.

use std::path::PathBuf;

use crate::connection::Connection;
use crate::failure::Failure;
use crate::files;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate openapi --file openapi.json")]
pub struct Openapi {
    /// Where to; standard output unless given.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

pub async fn run(command: Openapi) -> Result<(), Failure> {
    let document = command.connection.client()?.get("/api/v1/openapi.json").await?.body;
    files::write(command.file.as_deref(), &format!("{document:#}\n"))
}
