//! `shoal sql`: a shell when a person sits there, a runner of scripts when not.

use std::io::{IsTerminal, Read, Write};

use clap::{Args, ValueEnum};
use shoal_kernel::ReadLevel;

use super::interrupt::Interrupts;
use super::shell::{NoExtras, Shell, run_statement};
use super::{DEFAULT_URL, Exit};
use crate::client::{Client, ClientError};
use crate::statement;

#[derive(Args)]
pub(super) struct SqlArguments {
    /// Statements to run instead of a shell
    #[arg(short, long, value_name = "SQL")]
    execute: Vec<String>,
    /// The node to ask
    #[arg(long, default_value = DEFAULT_URL, env = "SHOAL_URL")]
    url: String,
    /// How answers are written
    #[arg(long, value_enum, default_value = "table")]
    format: OutputFormat,
    /// The level of reads: one, or quorum, which sees every write acknowledged at quorum before; else as the tables are set
    #[arg(long, value_name = "LEVEL")]
    consistency: Option<ReadLevel>,
}

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// For people
    Table,
    /// With a header line
    Csv,
    /// As the node gives them
    Json,
}

pub(super) fn run(arguments: SqlArguments) -> Result<(), Exit> {
    let client = Client::new(&arguments.url).reading_at(arguments.consistency);
    let interrupts = Interrupts::listen();
    if arguments.execute.is_empty() && std::io::stdin().is_terminal() {
        // Better to say it before the first prompt than after the first query.
        client.cluster().map(drop).or_else(|error| match error {
            ClientError::Unreachable { .. } => Err(error),
            _ => Ok(()),
        })?;
        let greeting = format!("Connected to {}. End statements with ; and ask \\? for help.", client.url());
        return Shell::new(client, interrupts, &mut NoExtras).run(&greeting);
    }
    let mut script = arguments.execute.join(";\n");
    if arguments.execute.is_empty() {
        std::io::stdin()
            .read_to_string(&mut script)
            .map_err(|error| Exit::usage(format!("the script cannot be read: {error}")))?;
    }
    execute(&client, &interrupts, &script, arguments.format)
}

/// Runs a script, statement by statement; stops at the first error.
pub(super) fn execute(
    client: &Client,
    interrupts: &Interrupts,
    script: &str,
    format: OutputFormat,
) -> Result<(), Exit> {
    let statements = statement::split(script);
    if statements.is_empty() {
        return Err(Exit::usage("there is no statement to run"));
    }
    for statement in statements {
        let (outcome, interrupted) = run_statement(client, interrupts, &statement.in_place(), |id, sql| match format {
            OutputFormat::Table => {
                let answer = client.sql_json(sql, Some(id))?;
                for entry in answer["results"].as_array().map_or(&[][..], Vec::as_slice) {
                    print(super::output::result(entry, usize::MAX).as_bytes())?;
                    print(b"\n")?;
                }
                Ok(())
            }
            OutputFormat::Json => {
                let answer = client.sql_json(sql, Some(id))?;
                print(answer.to_string().as_bytes())?;
                print(b"\n")
            }
            OutputFormat::Csv => copy(client.sql(sql, "csv", Some(id))?),
        });
        match outcome {
            Ok(()) => {}
            Err(_) if interrupted => return Err(Exit { code: 130, message: "interrupted".into() }),
            Err(error) => {
                let mut exit = Exit::from(error.error);
                if let Some(mark) = error.mark {
                    exit.message = format!("{}\n{mark}", exit.message);
                }
                return Err(exit);
            }
        }
    }
    Ok(())
}

fn print(bytes: &[u8]) -> Result<(), ClientError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| ClientError::CutOff(format!("standard output: {error}")))
}

fn copy(response: ureq::http::Response<ureq::Body>) -> Result<(), ClientError> {
    let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(bytes) => print(&chunk[..bytes])?,
            Err(error) => return Err(ClientError::CutOff(error.to_string())),
        }
    }
}
