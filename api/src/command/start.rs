//! `shoal start`: one node with its doors, until it is told to stop.

#![allow(clippy::disallowed_methods, reason = "the command line reads files and the environment of the real world")]

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use shoal_actors::Node;
use shoal_actors::service::NodeEnd;
use shoal_kernel::env::real;
use tracing_subscriber::EnvFilter;

use super::Exit;
use crate::backend::NodeBackend;
use crate::config::{self, Given, Layer, SETTINGS, Setting, StartConfig};
use crate::server::Server;

#[derive(Args)]
#[command(after_long_help = settings_help())]
pub(super) struct StartArguments {
    /// Where everything durable lies
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where clients are served [default: 127.0.0.1:9175]
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Where other nodes are served, TCP and UDP [default: 127.0.0.1:9176]
    #[arg(long, value_name = "HOST:PORT")]
    cluster: Option<String>,
    /// Nodes to join through, separated by commas
    #[arg(long, value_name = "HOST:PORT,…")]
    join: Option<String>,
    /// With whom the node fails, such as a rack: replicas are spread over zones
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// A file of settings
    #[arg(long, value_name = "FILE", env = "SHOAL_CONFIG")]
    config: Option<PathBuf>,
    /// Any other setting; see --help
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
}

fn settings_help() -> String {
    let mut help = String::from(
        "Settings, as --set NAME=VALUE, as SHOAL_NAME in the environment, or as keys of the file (flags win over the \
         environment, which wins over the file):\n",
    );
    for setting in SETTINGS {
        let default = if setting.default.is_empty() { String::new() } else { format!(" [{}]", setting.default) };
        help.push_str(&format!("  {}: {}{default}\n", setting.name, setting.about));
    }
    help
}

impl StartArguments {
    fn layer(&self) -> Result<Layer, Exit> {
        let mut layer = Layer::new();
        for pair in &self.set {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| Exit::usage(format!("--set {pair}: write NAME=VALUE")))?;
            let setting = Setting::find(name.trim()).ok_or_else(|| {
                let help = shoal_kernel::suggest::help(name, SETTINGS.iter().map(|setting| setting.name));
                Exit::usage(format!("--set {pair}: no such setting; {help}"))
            })?;
            layer.insert(setting.name, Given { value: value.into(), place: format!("--set {pair}") });
        }
        let named = [
            ("data_dir", "--data-dir", &self.data_dir),
            ("http", "--http", &self.http),
            ("cluster", "--cluster", &self.cluster),
            ("join", "--join", &self.join),
            ("zone", "--zone", &self.zone),
        ];
        for (name, flag, value) in named {
            if let Some(value) = value {
                layer.insert(name, Given { value: value.clone(), place: flag.into() });
            }
        }
        Ok(layer)
    }

    /// The settings, and variables of the environment that were passed over.
    fn resolve(&self) -> Result<(StartConfig, Vec<String>), Exit> {
        let mut layers = vec![self.layer()?];
        // A variable that is not text cannot be one of ours.
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let (environment, strangers) = config::from_environment(variables).map_err(Exit::usage)?;
        layers.push(environment);
        if let Some(path) = &self.config {
            let text =
                std::fs::read_to_string(path).map_err(|error| Exit::usage(format!("{}: {error}", path.display())))?;
            layers.push(config::from_file(path, &text).map_err(Exit::usage)?);
        }
        Ok((config::resolve(&layers).map_err(Exit::usage)?, strangers))
    }
}

pub(super) fn run(arguments: StartArguments) -> Result<(), Exit> {
    let (config, strangers) = arguments.resolve()?;
    log_to_stderr(&config.log, config.log_json)?;
    for variable in strangers {
        tracing::warn!(variable, "is no setting of a node and was passed over");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("shoal-node")
        .build()
        .map_err(|error| Exit::failed(format!("the runtime does not start: {error}")))?;
    runtime.block_on(serve(config))
}

/// What libraries log unless the user's own filter names them: openraft reports every attempt to reach a node that is down
/// as an error, several times a second. What matters of it, Shoal logs itself.
const LIBRARIES: &str = "openraft=off,actix_server=warn";

/// Sends log lines to standard error.
pub(super) fn log_to_stderr(filter: &str, json: bool) -> Result<(), Exit> {
    use std::io::IsTerminal;
    // Of two directives for one target the later counts.
    let filter = EnvFilter::try_new(format!("{LIBRARIES},{filter}"))
        .map_err(|error| Exit::usage(format!("log is '{filter}': {error}")))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // One subscriber per process; a second command in the same process keeps the first one's.
    let _ = if json { lines.json().try_init() } else { lines.try_init() };
    Ok(())
}

async fn serve(mut config: StartConfig) -> Result<(), Exit> {
    let listener = TcpListener::bind(config.server.address).map_err(|error| {
        Exit::failed(format!("cannot listen on {}: {error}; is another node running there?", config.server.address))
    })?;
    let bound = listener.local_addr().map_err(Exit::failed)?;
    config.node.http_address = bound;
    let data_dir = config.node.data_dir.clone();
    let cluster = config.node.cluster_address;
    let env = real::env(&real::RealOptions::default()).map_err(Exit::failed)?;
    let node = Node::start(env, config.node).await?;
    let backend = Arc::new(NodeBackend::new(node.clone(), tokio::runtime::Handle::current()));
    let server = Server::start(backend, listener, &config.server).map_err(Exit::failed)?;
    let mut out = std::io::stdout().lock();
    // Whoever started us may have closed our output; the node runs all the same.
    let _ = writeln!(
        out,
        "shoal {} node {} serves clients at http://{bound} and nodes at {cluster}, data in {}",
        env!("CARGO_PKG_VERSION"),
        node.id(),
        data_dir.display()
    );
    let _ = out.flush();
    drop(out);

    let failure = tokio::select! {
        told = told_to_stop() => {
            told?;
            tracing::info!("stopping");
            Ok(())
        }
        end = node.ended() => match end {
            NodeEnd::Failed(error) => {
                tracing::error!(%error, "the node cannot go on; stopping");
                Err(error.into())
            }
            NodeEnd::Removed => {
                tracing::info!("the node is no member of the cluster any more; stopping");
                Ok(())
            }
        }
    };
    tokio::select! {
        () = async {
            server.stop().await;
            node.shutdown().await;
        } => failure,
        again = told_to_stop() => {
            again?;
            Err(Exit { code: 130, message: "stopped at once, on the second signal".into() })
        }
    }
}

async fn told_to_stop() -> Result<(), Exit> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Exit::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Exit::failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
