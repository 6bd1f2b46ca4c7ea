//! `tidegate import` and `tidegate export`: whole documents in and out of an environment.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::connection::Place;
use crate::failure::{self, Exit, Failure};
use crate::files;
use crate::paint::{Output, Paint, print, print_json, table};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ImportFormat {
    /// flagd's flag document.
    Flagd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// flagd's flag document. Flags that it cannot express are named, and an error without
    /// `--partial`.
    Flagd,
    /// Everything, in the native format.
    Tidegate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fractional {
    V1,
    V2,
    V3,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate import flags.flagd.json --dry-run
  curl -s https://example.com/flags.json | tidegate import -

A flag that cannot be taken over is refused with its place and the reason (exit code 4); the others
are imported. Fields that flagd does not know are left behind and listed.")]
pub struct Import {
    /// The document; - is standard input.
    file: PathBuf,
    /// What the document is.
    #[arg(long, value_enum, default_value = "flagd")]
    format: ImportFormat,
    /// Says what would happen and writes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Which generation of flagd's `fractional` the document means.
    #[arg(long, value_enum, default_value = "v2")]
    fractional: Fractional,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tidegate export > flags.json
  tidegate export --format flagd --file flags.flagd.json

A flagd document cannot say which generation of `fractional` it means. Where it is not v2, which an
import takes it for, a note on standard error names the option that the import needs.")]
pub struct Export {
    #[arg(long, value_enum, default_value = "tidegate")]
    format: ExportFormat,
    /// Leave out what the format cannot express, instead of refusing.
    #[arg(long)]
    partial: bool,
    /// Where to; standard output unless given.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

pub async fn import(command: Import, output: Output) -> Result<(), Failure> {
    let (client, environment) = command.place.resolve()?;
    let document = files::read(&command.file)?;
    let ImportFormat::Flagd = command.format;
    let fractional = match command.fractional {
        Fractional::V1 => "v1",
        Fractional::V2 => "v2",
        Fractional::V3 => "v3",
    };
    let path = format!(
        "{}?format=flagd&dry_run={}&fractional={fractional}",
        environment.path(&["import"]),
        command.dry_run
    );
    let body = client.post_bytes(&path, document).await?.body;
    let results = body.get("flags").and_then(Value::as_array).cloned().unwrap_or_default();
    let refused = results.iter().filter(|flag| flag["result"] == "refused").count();
    match output {
        Output::Json => print_json(&body),
        Output::Text => {
            let mut text = import_text(Paint::of_stdout(), &results, command.dry_run);
            text.push_str(&ignored_text(&body));
            print(&text);
        }
    }
    if refused == 0 {
        return Ok(());
    }
    let places = results
        .iter()
        .filter(|flag| flag["result"] == "refused")
        .map(|flag| failure::Place {
            pointer: flag["pointer"].as_str().unwrap_or_default().to_owned(),
            message: flag["reason"].as_str().unwrap_or_default().to_owned(),
        })
        .collect();
    let mut failure =
        Failure::new(Exit::Refused, format!("{refused} of {} flags refused", results.len()));
    failure.places = places;
    Err(failure)
}

fn import_text(paint: Paint, results: &[Value], dry_run: bool) -> String {
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|flag| {
            let text = |name: &str| flag[name].as_str().unwrap_or_default().to_owned();
            vec![text("flag"), text("result"), text("reason")]
        })
        .collect();
    let mut text = table(paint, &["FLAG", "RESULT", ""], &rows);
    let count = |wanted: &str| results.iter().filter(|flag| flag["result"] == wanted).count();
    text.push_str(&format!(
        "\n{}{} created, {} changed, {} unchanged, {} refused\n",
        if dry_run { "dry run, nothing written: " } else { "" },
        count("created"),
        count("changed"),
        count("unchanged"),
        count("refused")
    ));
    text
}

/// What the document has and its format does not know: mostly a typing error.
fn ignored_text(body: &Value) -> String {
    let ignored = body.get("ignored").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if ignored.is_empty() {
        return String::new();
    }
    let mut text = "\nfields that flagd does not know, left behind:\n".to_owned();
    for place in ignored {
        text.push_str(&format!("  {}\n", place.as_str().unwrap_or_default()));
    }
    if let Some(more) = body.get("ignoredMore").and_then(Value::as_u64).filter(|more| *more > 0) {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

pub async fn export(command: Export, output: Output) -> Result<(), Failure> {
    let (client, environment) = command.place.resolve()?;
    let format = match command.format {
        ExportFormat::Flagd => "flagd",
        ExportFormat::Tidegate => "tidegate",
    };
    let partial = command.partial;
    let path = format!("{}?format={format}&partial={partial}", environment.path(&["export"]));
    let answer = client.get(&path).await?;
    let (document, fractional) = (answer.body, answer.fractional);
    let text = match output {
        Output::Json => document.to_string(),
        Output::Text => format!("{document:#}\n"),
    };
    files::write(command.file.as_deref(), &text)?;
    // What an import takes unless told; of the others the document itself cannot say it.
    if let Some(version) = fractional.filter(|version| version != "v2") {
        eprintln!(
            "note: fractional means {version} in this document; where it is imported, say so: \
             tidegate import --fractional {version}"
        );
    }
    if let Some(file) = command.file.filter(|file| file.as_os_str() != "-") {
        let count = document.get("flags").map_or(0, |flags| match flags {
            Value::Object(flags) => flags.len(),
            Value::Array(flags) => flags.len(),
            _ => 0,
        });
        match output {
            Output::Json => print_json(&json!({"file": file, "flags": count})),
            Output::Text => print(&format!("{count} flags written to {}", file.display())),
        }
    }
    Ok(())
}
