//! The `tidegate` binary: servers (`dev`, `control`, `edge`) and the commands of rule authors and
//! operators. Parses, runs one command, and turns a failure into one line and an exit code.
//!
//! Reading order: `dev.rs` (both servers in one process), `serve.rs` (either alone),
//! `connection.rs` and `client.rs` (how a command reaches control), then one file per command.

mod account;
mod audit;
mod change;
mod client;
mod connection;
mod demo;
mod dev;
mod eval;
mod failure;
mod files;
mod flag;
mod health;
mod init;
mod key;
mod lifecycle;
mod openapi;
mod paint;
mod policy;
mod readable;
mod reference;
mod serve;
mod session;
mod snapshot;
mod tenant;
mod trace;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sandbox::policy::helper;

use failure::{EXIT_CODES, Failure};
use paint::Output;

/// Feature flags whose rules run in WebAssembly.
#[derive(Parser)]
#[command(name = "tidegate", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value = "text", env = "TIDEGATE_OUTPUT")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  tidegate dev                                   control, edge and demo flags in one process
  tidegate flag list
  tidegate eval checkout --targeting-key user-1 --explain
  tidegate flag off checkout

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 refused by validation, 5 conflict,
6 unreachable.";

#[derive(Subcommand)]
enum Command {
    /// Lists, shows and changes flags.
    #[command(subcommand)]
    Flag(flag::Flag),
    /// Makes, reviews, applies and schedules change sets.
    #[command(subcommand)]
    Change(change::Change),
    /// Evaluates flags for a context, and explains the answers.
    Eval(eval::Eval),
    /// Writes, tries, uploads and pins wasm policies.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Brings flags of another format into an environment.
    Import(transfer::Import),
    /// Writes an environment's flags as one document.
    Export(transfer::Export),
    /// Shows, exports and checks the record of who changed what.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Shows and checks snapshots: of an edge's data folder, or as control publishes them.
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Runs control and an edge in one process, with demo flags, for trying and developing.
    Dev(dev::Dev),
    /// Runs control as a process of its own.
    Control(Box<serve::ControlArgs>),
    /// Brings control's database to this version's schema, without serving.
    Migrate(serve::MigrateArgs),
    /// Runs an edge as a process of its own.
    Edge(serve::EdgeArgs),
    /// Makes the first owner of an installation, with the token of control's first start.
    Setup(account::Setup),
    /// Signs in with an e-mail address and a password.
    Login(account::Login),
    /// Ends the session of `tidegate login`.
    Logout(account::Logout),
    /// Shows who a command acts as, and what their roles are.
    Whoami(account::Whoami),
    /// Lists, makes and deletes tokens: one's own, and a namespace's for programs.
    #[command(subcommand)]
    Token(account::Token),
    /// Lists, makes and deletes namespaces.
    #[command(subcommand)]
    Namespace(tenant::Namespace),
    /// Lists, makes, protects and deletes environments.
    #[command(subcommand)]
    Environment(tenant::Environment),
    /// Lists, makes, rotates and revokes the keys of an environment.
    #[command(subcommand)]
    Key(key::Key),
    /// Lists, makes, rotates and revokes the keys of edges.
    #[command(subcommand)]
    EdgeKey(key::EdgeKey),
    /// Lists the members of a namespace, gives and takes their roles.
    #[command(subcommand)]
    Member(account::Member),
    /// Makes the keys and passwords that several processes begin with.
    Init(init::Init),
    /// Writes the demo flags to a control that runs.
    Demo(demo::Demo),
    /// Asks a server whether it is ready; for containers and scripts.
    Health(health::Health),
    /// Prints the OpenAPI document of the admin API.
    Openapi(openapi::Openapi),
    /// Prints docs/CLI.md or docs/CONFIGURATION.md; `cargo xtask docs` writes them.
    #[command(hide = true)]
    Reference {
        #[arg(value_enum, default_value = "commands")]
        of: reference::Of,
    },
}

fn main() -> ExitCode {
    // Not a command of clap's: this process puts limits on itself before it has threads, and reads
    // what strangers wrote; it must never see the rest of this program.
    if std::env::args_os().nth(1).is_some_and(|first| first == helper::SUBCOMMAND) {
        return helper::main();
    }
    command()
}

#[tokio::main]
async fn command() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    warn_of_secrets(std::env::args().skip(1));
    let output = cli.output;
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            match output {
                Output::Text => eprintln!("{failure}"),
                Output::Json => eprintln!("{}", failure.json()),
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Flag(command) => flag::run(command, cli.output).await,
        Command::Change(command) => change::run(command, cli.output).await,
        Command::Eval(command) => eval::run(command, cli.output).await,
        Command::Policy(command) => policy::run(command, cli.output).await,
        Command::Import(command) => transfer::import(command, cli.output).await,
        Command::Export(command) => transfer::export(command, cli.output).await,
        Command::Audit(command) => audit::run(command, cli.output).await,
        Command::Snapshot(command) => snapshot::run(command, cli.output).await,
        Command::Dev(command) => dev::run(command, cli.output).await,
        Command::Control(command) => serve::control(*command, cli.output).await,
        Command::Migrate(command) => serve::migrate(command, cli.output).await,
        Command::Edge(command) => serve::edge(command, cli.output).await,
        Command::Setup(command) => account::setup(command, cli.output).await,
        Command::Login(command) => account::login(command, cli.output).await,
        Command::Logout(command) => account::logout(command, cli.output).await,
        Command::Whoami(command) => account::whoami(command, cli.output).await,
        Command::Token(command) => account::token(command, cli.output).await,
        Command::Namespace(command) => tenant::namespace(command, cli.output).await,
        Command::Environment(command) => tenant::environment(command, cli.output).await,
        Command::Key(command) => key::key(command, cli.output).await,
        Command::EdgeKey(command) => key::edge_key(command, cli.output).await,
        Command::Member(command) => account::member(command, cli.output).await,
        Command::Init(command) => init::run(command, cli.output),
        Command::Demo(command) => demo::run(command, cli.output).await,
        Command::Health(command) => health::run(command, cli.output).await,
        Command::Openapi(command) => openapi::run(command).await,
        Command::Reference { of } => {
            paint::print(&of.markdown());
            Ok(())
        }
    }
}

/// Options whose value is a secret, and the variable that keeps it out of `ps` and of histories.
const SECRET_OPTIONS: [(&str, &str); 3] = [
    ("--token", "TIDEGATE_TOKEN or --token-file"),
    ("--key", "TIDEGATE_KEY"),
    ("--edge-key", "TIDEGATE_EDGE_KEY or --edge-key-file"),
];

fn warn_of_secrets(arguments: impl Iterator<Item = String>) {
    for (option, instead) in secrets_among(arguments) {
        eprintln!(
            "warning: {option} on the command line can be read by every user of this machine \
             and stays in the shell's history; use {instead}"
        );
    }
}

fn secrets_among(
    arguments: impl Iterator<Item = String>,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    arguments.filter_map(|argument| {
        let name = argument.split('=').next().unwrap_or_default();
        SECRET_OPTIONS.into_iter().find(|(option, _)| *option == name)
    })
}

/// The long help of the exit codes, for the reference.
pub fn exit_codes() -> &'static str {
    EXIT_CODES
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_has_no_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_secret_is_noticed_in_both_spellings() {
        let arguments = ["--token=x", "--url", "y", "--edge-key", "z", "--token-file=f"];
        let found: Vec<&str> =
            secrets_among(arguments.into_iter().map(str::to_owned)).map(|(name, _)| name).collect();
        assert_eq!(found, ["--token", "--edge-key"]);
    }
}
