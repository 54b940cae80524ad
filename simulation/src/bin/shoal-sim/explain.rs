//! `explain`: the story of a run, from its trace.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use shoal_simulation::story::{self, Story};

use crate::Outcome;

#[derive(Args)]
pub struct ExplainArguments {
    /// What `--trace` has written.
    trace: PathBuf,
    /// Tells of this operation, as `3.102`; may be given several times. Those that broken promises name, unless given.
    #[arg(long = "operation", value_name = "ID")]
    operations: Vec<String>,
    /// Every event of the trace, not only those that the operations hang on.
    #[arg(long)]
    all: bool,
    /// In which form.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    format: Form,
    /// Writes it to a file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// For programs: events with their messages and vector clocks.
    Json,
    /// For ShiViz, which draws space-time diagrams.
    Shiviz,
}

pub fn explain(arguments: &ExplainArguments) -> io::Result<Outcome> {
    let wrong = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", arguments.trace.display()));
    let trace = std::fs::read_to_string(&arguments.trace).map_err(|error| wrong(&error))?;
    let story = Story::parse(&trace).map_err(|error| wrong(&error))?;
    for operation in &arguments.operations {
        let begins = format!("operation {operation} begins");
        if !story.events().iter().any(|event| event.text.starts_with(&begins)) {
            return Err(wrong(&format_args!("there is no operation {operation}; they are named as in 3.102")));
        }
    }
    let (operations, all) = (&arguments.operations, arguments.all);
    let text = match arguments.format {
        Form::Text => story::text(&story, operations, all),
        Form::Json => story::json(&story, operations, all)?,
        Form::Shiviz => story::shiviz(&story, operations, all),
    };
    match &arguments.output {
        Some(path) => std::fs::write(path, text)?,
        None => io::stdout().write_all(text.as_bytes())?,
    }
    Ok(Outcome::Held)
}
