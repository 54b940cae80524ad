//! `shoal demo`: three nodes in one process, over real sockets, in a temporary directory; real data, a little live data, and
//! a shell in which a node can be killed and started again.

mod cluster;
mod generator;

use std::io::IsTerminal;

use clap::Args;

use self::cluster::Cluster;
use self::generator::Generator;
use super::import::{self, ImportArguments};
use super::interrupt::Interrupts;
use super::shell::{Extras, Shell};
use super::sql::{OutputFormat, execute};
use super::{Exit, start};
use crate::client::Client;

const FLIGHTS: &[u8] = include_bytes!("../../../demo/flights.parquet");
const AIRPORTS: &[u8] = include_bytes!("../../../demo/airports.csv");

const SCHEMA: &str = "\
CREATE TABLE flights (id BIGINT NOT NULL, ts TIMESTAMP, origin VARCHAR, destination VARCHAR, delay INTEGER, distance INTEGER, PRIMARY KEY (id));
CREATE TABLE airports (iata VARCHAR NOT NULL, name VARCHAR, city VARCHAR, state VARCHAR, country VARCHAR, latitude DOUBLE, longitude DOUBLE, PRIMARY KEY (iata));
CREATE TABLE departures (id BIGINT NOT NULL, ts TIMESTAMP, origin VARCHAR, destination VARCHAR, delay INTEGER, PRIMARY KEY (id))";

const SAMPLES: &str = "  SELECT origin, count(*) AS flights, avg(delay) AS delay FROM flights GROUP BY origin ORDER BY flights DESC LIMIT 10;
  SELECT a.state, count(*) AS flights, max(f.delay) AS worst FROM flights f JOIN airports a ON f.origin = a.iata GROUP BY a.state ORDER BY flights DESC LIMIT 10;
  SELECT date_trunc('minute', ts) AS minute, count(*) AS departures FROM departures GROUP BY 1 ORDER BY 1 DESC LIMIT 5;";

#[derive(Args)]
pub(super) struct DemoArguments {
    /// Stop once the data is loaded
    #[arg(long)]
    exit_after_load: bool,
    /// Run this once the data is loaded, then stop
    #[arg(short, long, value_name = "SQL")]
    execute: Vec<String>,
    /// How answers to -e are written
    #[arg(long, value_enum, default_value = "table")]
    format: OutputFormat,
    /// What is logged
    #[arg(long, default_value = "error", env = "SHOAL_LOG")]
    log: String,
}

pub(super) fn run(arguments: DemoArguments) -> Result<(), Exit> {
    start::log_to_stderr(&arguments.log, false)?;
    let interrupts = Interrupts::listen();
    eprintln!("Starting three nodes …");
    let mut cluster = Cluster::start()?;
    interrupts.before_exit(cluster.cleanup());
    let client = cluster.client(1);
    eprintln!("Loading 300,000 flights and 3,376 airports through node 1 …");
    client.sql_json(SCHEMA, None)?;
    for (name, table, bytes) in [("flights.parquet", "flights", FLIGHTS), ("airports.csv", "airports", AIRPORTS)] {
        let file = cluster.write_file(name, bytes)?;
        eprintln!("{}", import::load(&ImportArguments::new(file, table, client.url()))?);
    }
    for number in 1..=cluster::NODES {
        println!("node {number}: {}", cluster.url(number));
    }
    println!("\nThree queries to try:\n{SAMPLES}");
    if arguments.exit_after_load {
        return cluster.stop();
    }
    if !arguments.execute.is_empty() {
        let done = execute(&client, &interrupts, &arguments.execute.join(";\n"), arguments.format);
        cluster.stop()?;
        return done;
    }
    let generator = Generator::start(cluster.clients());
    let done = if std::io::stdin().is_terminal() {
        let greeting = "\nA few departures per second arrive in table departures. \\kill 2 crashes a node, \\start 2 brings it \
                        back; \\? lists the rest.";
        let mut extras = DemoExtras { cluster: &mut cluster };
        Shell::new(client, interrupts, &mut extras).run(greeting)
    } else {
        commands(&mut cluster, &interrupts, arguments.format)
    };
    generator.stop();
    cluster.stop()?;
    done
}

/// Standard input that is no terminal: statements, with `\kill` and `\start` on lines of their own between them.
fn commands(cluster: &mut Cluster, interrupts: &Interrupts, format: OutputFormat) -> Result<(), Exit> {
    let mut pending = String::new();
    let mut extras = DemoExtras { cluster };
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| Exit::usage(format!("standard input: {error}")))?;
        if let Some(command) = line.trim().strip_prefix('\\').filter(|_| pending.trim().is_empty()) {
            let mut words = command.split_whitespace();
            let name = words.next().unwrap_or_default();
            let arguments: Vec<&str> = words.collect();
            match extras.command(name, &arguments) {
                Some(Ok(said)) => println!("{said}"),
                Some(Err(error)) => return Err(Exit::failed(error)),
                None => return Err(Exit::usage(format!("there is no command \\{name}"))),
            }
            continue;
        }
        pending.push_str(&line);
        pending.push('\n');
        if crate::statement::is_complete(&pending) {
            let client = extras.cluster.any_client();
            execute(&client, interrupts, &std::mem::take(&mut pending), format)?;
        }
    }
    if pending.trim().is_empty() {
        return Ok(());
    }
    execute(&extras.cluster.any_client(), interrupts, &pending, format)
}

struct DemoExtras<'a> {
    cluster: &'a mut Cluster,
}

impl Extras for DemoExtras<'_> {
    fn help(&self) -> &str {
        "\n  \\kill N        crash node N (1 to 3)\n  \\start N       start it again from its directory"
    }

    fn command(&mut self, name: &str, arguments: &[&str]) -> Option<Result<String, String>> {
        let number = || match arguments {
            [number] => number.parse().ok().filter(|number| (1..=cluster::NODES).contains(number)),
            _ => None,
        };
        let which = || format!("say which node: \\{name} 1 to \\{name} {}", cluster::NODES);
        match name {
            "kill" => Some(number().ok_or_else(which).and_then(|number| self.cluster.kill(number))),
            "start" => Some(number().ok_or_else(which).and_then(|number| self.cluster.restart(number))),
            _ => None,
        }
    }

    fn client(&mut self) -> Option<Client> {
        Some(self.cluster.any_client())
    }
}
