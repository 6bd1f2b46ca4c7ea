//! docs/CLI.md and docs/CONFIGURATION.md, from the same definitions that the command line is parsed
//! with.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

/// Wide enough that examples are not broken, and independent of the terminal that runs this.
const COLUMNS: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Of {
    Commands,
    Configuration,
}

impl Of {
    pub fn markdown(self) -> String {
        match self {
            Of::Commands => commands(),
            Of::Configuration => configuration(),
        }
    }
}

fn commands() -> String {
    let mut text = "# The `tidegate` command\n\n\
        Generated from the command line's own definitions by `cargo xtask docs`; do not edit.\n\n\
        ```text\n"
        .to_owned();
    text.push_str(crate::exit_codes());
    text.push_str("\n```\n");
    let mut root = root();
    section(&mut text, &mut root, "");
    text
}

fn root() -> Command {
    let root = crate::Cli::command().term_width(COLUMNS).color(clap::ColorChoice::Never);
    let mut root = without_values(root);
    // Fills in the usage lines and hands settings down.
    root.build();
    root
}

/// Every setting of both servers, as tables.
fn configuration() -> String {
    let mut text = "# Settings of control and edge\n\n\
        Generated from the command line's own definitions by `cargo xtask docs`; do not edit. Each \
        setting is an argument\nor a variable; an argument wins. A variable that is set to nothing \
        counts as not set where that makes sense.\n\n\
        Passwords have a variable or a file and no argument, since other users can read command \
        lines: `TIDEGATE_NATS_PASSWORD`, `TIDEGATE_ETCD_PASSWORD`.\n"
        .to_owned();
    let root = root();
    for name in ["control", "edge"] {
        let Some(command) = root.find_subcommand(name) else { continue };
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(text, "\n## `tidegate {name}`\n\n{about}.\n\n");
        text.push_str("| argument | variable | default | what it is |\n|---|---|---|---|\n");
        for argument in command.get_arguments().filter(|argument| argument.get_env().is_some()) {
            let _ = writeln!(text, "{}", row(argument));
        }
    }
    text
}

fn row(argument: &clap::Arg) -> String {
    let long = argument.get_long().unwrap_or_default();
    let value = argument.get_value_names().and_then(<[_]>::first);
    let value = value.map(|name| format!(" {name}")).unwrap_or_default();
    let variable = argument.get_env().unwrap_or_default().to_string_lossy();
    let defaults: Vec<String> = argument
        .get_default_values()
        .iter()
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let required = if argument.is_required_set() { "required" } else { "" };
    let defaults = if defaults.is_empty() { required.to_owned() } else { defaults.join(", ") };
    let help = argument.get_long_help().or(argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    let help = help.replace('|', "\\|").replace('<', "&lt;");
    format!("| `--{long}{value}` | `{variable}` | {defaults} | {help} |")
}

/// The values that variables have where this runs are nobody's business.
fn without_values(command: Command) -> Command {
    command.mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(without_values)
}

fn section(text: &mut String, command: &mut Command, parent: &str) {
    let name = format!("{parent}{}", command.get_name());
    let help = command.render_long_help().to_string();
    let _ = write!(text, "\n## `{name}`\n\n```text\n");
    for line in help.lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str("```\n");
    for child in command.get_subcommands_mut() {
        if !child.is_hide_set() && child.get_name() != "help" {
            section(text, child, &format!("{name} "));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_generated_documents_are_what_the_command_line_says() {
        let documents =
            [("CLI.md", super::commands()), ("CONFIGURATION.md", super::configuration())];
        for (name, text) in documents {
            let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
            let written = std::fs::read_to_string(path).unwrap_or_default();
            assert!(written == text, "docs/{name} is stale: run `cargo xtask docs`");
        }
    }

    #[test]
    fn every_setting_of_a_server_has_a_variable() {
        let root = super::root();
        for name in ["control", "edge"] {
            for argument in root.find_subcommand(name).unwrap().get_arguments() {
                let long = argument.get_long().unwrap_or("a position");
                let has = argument.get_env().is_some() || ["help", "version"].contains(&long);
                assert!(has, "tidegate {name} --{long} has no variable");
            }
        }
    }
}
