//! docs/CLI.md, from the same definitions that the command line is parsed with.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

/// Wide enough that examples are not broken, and independent of the terminal that runs this.
const COLUMNS: usize = 100;

pub fn markdown() -> String {
    let mut text = "# The `tidegate` command\n\n\
        Generated from the command line's own definitions by `cargo xtask docs`; do not edit.\n\n\
        ```text\n"
        .to_owned();
    text.push_str(crate::exit_codes());
    text.push_str("\n```\n");
    let root = crate::Cli::command().term_width(COLUMNS).color(clap::ColorChoice::Never);
    let mut root = without_values(root);
    // Fills in the usage lines and hands settings down.
    root.build();
    section(&mut text, &mut root, "");
    text
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
    fn docs_cli_md_is_what_the_command_line_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CLI.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == super::markdown(), "docs/CLI.md is stale: run `cargo xtask docs`");
    }
}
