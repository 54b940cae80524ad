//! Settings of `shoal start`: flags over `SHOAL_*` over the file over defaults. What is not known is an error that names its
//! place and what was probably meant.

mod file;
mod setting;

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_actors::service::{NodeConfig, SettingStatus};

use crate::objects::RealObjectStores;
use crate::server::{Limits, ServerOptions};
pub use setting::{SETTINGS, Setting};

/// Why the settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}{}", .help.as_ref().map(|help| format!("\n  {help}")).unwrap_or_default())]
pub struct ConfigError {
    /// Where: a flag, a variable, or a file with line and column.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl ConfigError {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into(), help: None }
    }

    fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A value with the place it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// As text.
    pub value: String,
    /// For messages.
    pub place: String,
}

/// Values of one layer, by setting.
pub type Layer = BTreeMap<&'static str, Given>;

/// Everything that `shoal start` needs to know.
#[derive(Debug, Clone)]
pub struct StartConfig {
    /// The node.
    pub node: NodeConfig,
    /// Its doors.
    pub server: ServerOptions,
    /// What is logged, as tracing's filters are written.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

/// The layer that the environment gives, and variables that begin with `SHOAL_` and mean nothing here: other programs may
/// have use for them.
///
/// # Errors
/// Such a variable looks like one of ours with a slip of the finger in it.
pub fn from_environment(
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(Layer, Vec<String>), ConfigError> {
    let mut layer = Layer::new();
    let mut strangers = Vec::new();
    for (name, value) in variables {
        let Some(key) = name.strip_prefix("SHOAL_") else {
            continue;
        };
        let key = key.to_ascii_lowercase();
        // Where the file is and where clients connect are not settings of the node.
        if matches!(key.as_str(), "config" | "url") {
            continue;
        }
        match (Setting::find(&key), shoal_kernel::suggest::closest(&key, setting::names())) {
            (Some(setting), _) => drop(layer.insert(setting.name, Given { value, place: name })),
            (None, Some(meant)) => {
                return Err(ConfigError::new(name, "no such setting").with_help(format!("did you mean '{meant}'?")));
            }
            (None, None) => strangers.push(name),
        }
    }
    Ok((layer, strangers))
}

/// The layer that a file gives.
///
/// # Errors
/// It is no TOML, or holds an unknown key or a value of the wrong type; line and column are named.
pub fn from_file(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    file::read(path, text)
}

/// Puts the layers together; earlier ones win.
///
/// # Errors
/// A value cannot be read, or settings contradict each other.
pub fn resolve(layers: &[Layer]) -> Result<StartConfig, ConfigError> {
    let values = Values { layers };
    let data_dir = values.text("data_dir").map(|given| PathBuf::from(&given.value)).ok_or_else(|| {
        ConfigError::new("data_dir", "is not given").with_help("shoal start --data-dir DIR; all else has a default")
    })?;
    let http = values.address("http")?;
    let cluster = values.address("cluster")?;
    if http == cluster && http.port() != 0 {
        return Err(ConfigError::new("http", format!("{http} is also the cluster address"))
            .with_help("clients and nodes are served on different ports"));
    }
    let mut node = NodeConfig::new(data_dir, cluster, http);
    node.join = values.addresses("join")?;
    if let Some(secret) = values.text("cluster_secret") {
        if secret.value.is_empty() {
            return Err(ConfigError::new(&secret.place, "the cluster's secret is empty"));
        }
        node.cluster_secret = secret.value.clone();
    }
    if let Some(zone) = values.text("zone") {
        shoal_catalog::check_zone(&zone.value).map_err(|why| ConfigError::new(&zone.place, why))?;
        node.zone = zone.value.clone();
    }
    values.number("clock_skew_max_ms", 1, &mut node.clock_skew_max_ms)?;
    values.number("replace_after_ms", 1_000, &mut node.replace_after_ms)?;
    values.number("repair_every_ms", 0, &mut node.repair_every_ms)?;
    values.number("purge_after_ms", 0, &mut node.purge_after_ms)?;
    values.number("purge_tombstones_min", 1, &mut node.purge_tombstones_min)?;
    values.number("memtable_bytes_max", 1 << 20, &mut node.memtable_bytes_max)?;
    node.memtables_bytes_max = node.memtables_bytes_max.max(node.memtable_bytes_max.saturating_mul(4));
    values.number("memtables_bytes_max", 16 << 20, &mut node.memtables_bytes_max)?;
    values.number("disk_reserve_bytes", 0, &mut node.disk_reserve_bytes)?;
    values.size("page_pool_bytes_max", 0, &mut node.page_pool_bytes_max)?;
    values.size("query_memory_bytes_max", 1 << 20, &mut node.query_memory_bytes_max)?;
    values.number("spill_bytes_max", 0, &mut node.spill_bytes_max)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    node.compactions_max = (cores / 2).clamp(1, 8);
    values.size("compactions_max", 1, &mut node.compactions_max)?;
    values.number("compaction_bytes_per_second", 0, &mut node.compaction_bytes_per_second)?;
    values.number("fill_bytes_per_second", 0, &mut node.fill_bytes_per_second)?;
    values.number("fill_files_bytes_min", 0, &mut node.fill_files_bytes_min)?;
    values.number("backup_bytes_per_second", 0, &mut node.backup_bytes_per_second)?;
    if let Some(urls) = values.text("backup_urls") {
        let parts = urls.value.split(',').map(str::trim).filter(|part| !part.is_empty());
        node.backup_urls = parts.map(str::to_owned).collect();
        if let Some(wrong) = node.backup_urls.iter().find(|url| !url.contains("://")) {
            return Err(ConfigError::new(&urls.place, format!("'{wrong}' begins no URL"))
                .with_help("write file:///path or s3://bucket, or file:// for any directory"));
        }
    }
    node.object_stores = Some(Arc::new(RealObjectStores));
    let mut failures_max = u64::from(node.replica_failures_max);
    values.number("replica_failures_max", 1, &mut failures_max)?;
    node.replica_failures_max = u32::try_from(failures_max).unwrap_or(u32::MAX);
    values.number("read_lag_max", 0, &mut node.read_lag_max)?;
    values.size("segments_overdue_max", 8, &mut node.segments_overdue_max)?;
    values.size("queries_max", 1, &mut node.queries_max)?;
    values.size("queries_queued_max", 0, &mut node.queries_queued_max)?;
    node.scan_slices_max = cores.clamp(1, 32);
    values.size("scan_slices_max", 1, &mut node.scan_slices_max)?;
    values.number("scan_slice_rows_min", 1, &mut node.scan_slice_rows_min)?;
    let mut window = u64::from(node.edge_window_bytes);
    values.number("edge_window_bytes", 1024, &mut window)?;
    node.edge_window_bytes = u32::try_from(window).unwrap_or(u32::MAX);
    values.number("inflight_bytes_max", 16 << 20, &mut node.inflight_bytes_max)?;
    values.number("replica_queue_bytes_max", 16 << 20, &mut node.replica_queue_bytes_max)?;
    values.number("request_timeout_ms", 1, &mut node.request_timeout_ms)?;

    let mut server = ServerOptions::new(http);
    values.size("http_workers", 1, &mut server.workers)?;
    let Limits {
        ingest_body_bytes_max,
        ingest_line_bytes_max,
        ingest_decoded_bytes_max,
        ingest_memory_bytes_max,
        body_idle,
        http_connections_max,
        ws_sessions_max,
        ws_queries_max,
        ws_frame_bytes_max,
        ws_idle,
    } = &mut server.limits;
    values.size("ingest_body_bytes_max", 1, ingest_body_bytes_max)?;
    values.size("ingest_line_bytes_max", 1, ingest_line_bytes_max)?;
    values.size("ingest_decoded_bytes_max", 1, ingest_decoded_bytes_max)?;
    values.size("ingest_memory_bytes_max", 1, ingest_memory_bytes_max)?;
    values.duration_ms("body_idle_ms", body_idle)?;
    values.size("http_connections_max", 1, http_connections_max)?;
    values.size("ws_sessions_max", 0, ws_sessions_max)?;
    values.size("ws_queries_max", 1, ws_queries_max)?;
    values.size("ws_frame_bytes_max", 1024, ws_frame_bytes_max)?;
    values.duration_ms("ws_idle_ms", ws_idle)?;
    if ingest_body_bytes_max > ingest_memory_bytes_max {
        return Err(ConfigError::new(
            "ingest_body_bytes_max",
            format!("{ingest_body_bytes_max} is more than ingest_memory_bytes_max, {ingest_memory_bytes_max}"),
        ));
    }
    let log = values.text("log").map_or_else(|| "info".to_owned(), |given| given.value.clone());
    let log_json = match values.text("log_json") {
        None => false,
        Some(given) => given.value.parse().map_err(|_| values.unreadable("log_json", given, "true or false"))?,
    };
    node.settings = SETTINGS.iter().map(|setting| values.status(setting)).collect();
    Ok(StartConfig { node, server, log, log_json })
}

struct Values<'a> {
    layers: &'a [Layer],
}

impl Values<'_> {
    /// A setting as it was given, for whoever looks later.
    fn status(&self, setting: &Setting) -> SettingStatus {
        let given = self.text(setting.name);
        let shown = |given: &Given| match setting.name {
            "cluster_secret" => "(not shown)".to_owned(),
            _ => given.value.clone(),
        };
        SettingStatus {
            name: setting.name.to_owned(),
            value: given.map(shown),
            default: setting.default.to_owned(),
            given_in: given.map(|given| given.place.clone()),
            about: setting.about.to_owned(),
        }
    }

    fn text(&self, name: &str) -> Option<&Given> {
        debug_assert!(Setting::find(name).is_some(), "{name} is in no table");
        self.layers.iter().find_map(|layer| layer.get(name))
    }

    fn unreadable(&self, name: &str, given: &Given, wanted: &str) -> ConfigError {
        ConfigError::new(&given.place, format!("{name} is '{}', not {wanted}", given.value))
    }

    fn number(&self, name: &str, least: u64, target: &mut u64) -> Result<(), ConfigError> {
        if let Some(given) = self.text(name) {
            let digits = given.value.replace('_', "");
            *target = digits.parse().map_err(|_| self.unreadable(name, given, "a whole number"))?;
            if *target < least {
                return Err(ConfigError::new(&given.place, format!("{name} is {target}; the least is {least}")));
            }
        }
        Ok(())
    }

    fn size(&self, name: &str, least: u64, target: &mut usize) -> Result<(), ConfigError> {
        let mut wide = *target as u64;
        self.number(name, least, &mut wide)?;
        *target = usize::try_from(wide)
            .map_err(|_| ConfigError::new(name, format!("{wide} is more than this machine can count")))?;
        // tokio's semaphores count no further.
        *target = (*target).min(usize::MAX >> 3);
        Ok(())
    }

    fn duration_ms(&self, name: &str, target: &mut Duration) -> Result<(), ConfigError> {
        let mut ms = u64::try_from(target.as_millis()).unwrap_or(u64::MAX);
        self.number(name, 1, &mut ms)?;
        *target = Duration::from_millis(ms);
        Ok(())
    }

    fn address(&self, name: &str) -> Result<SocketAddr, ConfigError> {
        let given = self.text(name).cloned().unwrap_or_else(|| Given {
            value: Setting::find(name).map(|setting| setting.default.to_owned()).unwrap_or_default(),
            place: format!("the default of {name}"),
        });
        let address = parse_address(&given)?;
        if !address.ip().is_loopback() {
            return Err(ConfigError::new(&given.place, format!("{address} is not a loopback address")).with_help(
                "users cannot be authenticated yet, so Shoal listens on 127.0.0.1 or [::1] only; a tunnel or proxy that \
                 authenticates can stand before it",
            ));
        }
        Ok(address)
    }

    fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, ConfigError> {
        let Some(given) = self.text(name) else {
            return Ok(Vec::new());
        };
        let parts = given.value.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| parse_address(&Given { value: part.to_owned(), place: given.place.clone() })).collect()
    }
}

fn parse_address(given: &Given) -> Result<SocketAddr, ConfigError> {
    let wrong = |why: String| {
        ConfigError::new(&given.place, format!("'{}' is no address: {why}", given.value))
            .with_help("write HOST:PORT, such as 127.0.0.1:9175")
    };
    let mut found = given.value.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("the name has no address".into()))
}

#[cfg(test)]
mod tests;
