//! What a seed fixes besides its faults: sizes, tables, clients, the ending.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_actors::service::NodeConfig;
use shoal_kernel::{Fsync, Planted};

use super::objects;
use super::operation::Mix;
use crate::faults::{FaultKind, FaultMenu, draw_gap_ms, draw_kinds};
use crate::random::Stream;
use crate::run::RunOptions;
use crate::world::HostId;

/// Where nodes listen for each other, and for clients.
const CLUSTER_PORT: u16 = 9176;
const HTTP_PORT: u16 = 9175;

/// Mostly events stay.
const EVENTS_TTL_SECONDS: [Option<u64>; 8] = [None, None, None, None, None, Some(5), Some(12), Some(30)];
/// How wide the windows are that the partitions of events are made of, if they are.
const EVENT_WINDOW_SECONDS: [Option<u64>; 3] = [None, None, Some(15)];

/// Mostly replicas are made anew while faults go on.
const REPLACE_AFTER_MS: [u64; 3] = [2_000, 8_000, 600_000];

/// Mostly replicas are not compared: what catch-up misses must stay missed, to be found.
const REPAIR_EVERY_MS: [u64; 3] = [600_000, 600_000, 4_000];

/// Half of the time deletions are forgotten while clients work.
const PURGE_AFTER_MS: [u64; 4] = [3_600_000, 3_600_000, 4_000, 10_000];

/// Of what size on replicas are filled by files, and not by rows.
const FILL_FILES_BYTES_MIN: [u64; 4] = [0, 0, 4 << 10, 16 << 20];

/// Mostly clients wait for as long as anything takes that ends at all.
const PATIENCE_MS: [u64; 6] = [300, 1_000, 5_000, 5_000, 5_000, 5_000];

/// Memory that no query of a run fills.
const WIDE_QUERY_MEMORY: usize = 64 << 20;
/// Mostly it is wide. With so little, batches are short: an operator goes on with files only if a few of its batches fit into memory.
const QUERY_MEMORY_BYTES: [usize; 6] =
    [768 << 10, 1 << 20, WIDE_QUERY_MEMORY, WIDE_QUERY_MEMORY, WIDE_QUERY_MEMORY, WIDE_QUERY_MEMORY];

/// Mostly all nodes are in one.
const ZONES: [u16; 5] = [1, 1, 1, 2, 3];

/// The data directory of every node.
pub(super) const DATA_DIR: &str = "/data";

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Ending {
    /// Everything is healed: nothing may be lost, and everything must be equal.
    #[default]
    HealAll,
    /// Some nodes never come back, no more than a majority of replicas bears: what it had acknowledged must be there.
    Lose {
        /// Which.
        nodes: Vec<u16>,
        /// They run on, and reach clients, but none of the other nodes.
        #[serde(default)]
        cut_off: bool,
    },
    /// One node loses its disk under faults, and another one comes in its place: what was acknowledged by a majority must be there.
    ReplaceOne {
        /// Which; not the first one, which would found a cluster of its own.
        node: u16,
    },
}

impl Ending {
    /// The hosts whose copies are destroyed.
    pub fn destroyed(&self) -> &[u16] {
        match self {
            Self::HealAll => &[],
            Self::Lose { nodes, .. } => nodes,
            Self::ReplaceOne { node } => std::slice::from_ref(node),
        }
    }
}

/// What the seed has drawn.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) nodes: u16,
    pub(super) seconds: u64,
    /// Replicas that every table gets: as many as it asks for, or as there are nodes.
    pub(super) replicas: u16,
    pub(super) ending: Ending,
    /// Partitions of the tables are windows.
    pub(super) upserts_windows: bool,
    pub(super) events_windows: bool,
    /// Events bring their own time.
    pub(super) event_times: bool,
    /// How long events are kept, in microseconds.
    pub(super) events_ttl: Option<u64>,
    /// The node that joins under faults, if one does.
    pub(super) joins: Option<u16>,
    pub(super) menu: FaultMenu,
    pub(super) clients: u64,
    /// How long clients work before anything fails.
    pub(super) load: Duration,
    /// When the tables are synced.
    pub(super) upserts_fsync: Fsync,
    pub(super) events_fsync: Fsync,
    /// The statement that makes the upsert table.
    pub(super) upserts: String,
    /// The statement that makes the event table.
    pub(super) events: String,
    /// The statement that makes the table that is joined.
    pub(super) names: String,
    memtable_bytes_max: u64,
    /// None, so little that pages come and go all the time, or room for all of them.
    page_pool_bytes_max: usize,
    /// So slow at times that most things happen in the middle of a merge.
    compaction_bytes_per_second: u64,
    /// So slow at times that reads come while replicas are being filled.
    fill_bytes_per_second: u64,
    /// Mostly so few that whatever a peer has is enough for a replica to be filled by files.
    fill_files_bytes_min: u64,
    /// Failures in a row after which others get a replica.
    replica_failures_max: u32,
    /// Mostly so few accepts that a replica which is behind is passed over.
    read_lag_max: u64,
    /// Rows for which a scan gets one more task.
    scan_slice_rows_min: u64,
    /// So few at times that a task of a query waits after every few rows.
    edge_window_bytes: u32,
    /// The setting of tables that says how many replicas they get.
    pub(super) copies: Option<String>,
    /// What clients do, and how long they wait for it.
    pub(super) mix: Mix,
    pub(super) patience: Duration,
    /// Hardly any queries at once.
    tight: bool,
    query_memory_bytes_max: usize,
    /// And so few bytes of rows at times that a storm is refused.
    inflight_bytes_max: u64,
    replica_queue_bytes_max: u64,
    /// Racks that the nodes stand in.
    zones: u16,
    /// After how long other nodes take the place of one that is down, in milliseconds.
    replace_after_ms: u64,
    /// How often replicas are compared with each other, in milliseconds.
    repair_every_ms: u64,
    /// After how long deletions may be forgotten, in milliseconds.
    purge_after_ms: u64,
    /// Requests to the store of objects that fail, in a thousand.
    pub(super) objects_failing_permille: u64,
    /// A node loses one in so many of the rows that it has, once everything is equal: repair must find them.
    pub(super) loses_one_in: Option<u64>,
    planted: Option<Planted>,
}

impl Settings {
    /// Sorts may need more than there is.
    pub(super) fn has_little_memory(&self) -> bool {
        self.query_memory_bytes_max < WIDE_QUERY_MEMORY
    }

    pub(super) fn draw(options: &RunOptions) -> Self {
        let stream = |purpose| Stream::new(options.seed, purpose, 0);
        let partitioned = |column: &str, purpose, splits: &str| {
            let mut stream = stream(purpose);
            match stream.below(4) {
                0 => String::new(),
                3 => {
                    let width = stream.between(7, 40);
                    match stream.chance(250) {
                        true => format!(" PARTITION BY VALUE({column})"),
                        false => format!(" WITH (partition_size_hint = {width})"),
                    }
                }
                1 => format!(" PARTITION BY HASH({column}) PARTITIONS {}", stream.between(1, 4)),
                _ => format!(" PARTITION BY RANGE({column}) SPLIT AT ({splits})"),
            }
        };
        let nodes = options.nodes();
        // Mostly the default, which needs no clause. Five bear the loss of two.
        let factors = [3, 3, 3, 3, if nodes < 5 { 3 } else { 5 }, 3, 1, 2, 4, 5];
        let drawn = stream("replication").pick(&factors).copied();
        let factor = options.replication_factor.or(drawn).unwrap_or(3);
        let replicas = factor.min(nodes);
        let copies = (factor != 3).then(|| format!("replication_factor = {factor}"));
        let small = stream("partition size").chance(300).then(|| "partition_rows_max = 100".to_owned());
        let with = |fsync: Fsync| {
            let late = match fsync {
                Fsync::Always => None,
                Fsync::Interval { ms } => Some(format!("fsync = 'interval', fsync_interval_ms = {ms}")),
                Fsync::Never => Some("fsync = 'never'".to_owned()),
            };
            let all: Vec<String> = copies.clone().into_iter().chain(late).chain(small.clone()).collect();
            if all.is_empty() { String::new() } else { format!(" WITH ({})", all.join(", ")) }
        };
        let ttl = stream("events ttl").pick(&EVENTS_TTL_SECONDS).copied().flatten();
        let kept = ttl.map_or_else(String::new, |seconds| format!(" WITH (ttl = '{seconds}s')"));
        let windows = stream("event windows").pick(&EVENT_WINDOW_SECONDS).copied().flatten();
        let windowed =
            windows.map_or_else(String::new, |seconds| format!(" WITH (partition_size_hint = '{seconds}s')"));
        let upserts_parts = partitioned("k", "upsert partitions", "20, 40");
        let late = options.late_join.unwrap_or_else(|| stream("late join").chance(120));
        let joins = nodes.checked_sub(1).filter(|last| late && *last > 0);
        // Fewer than three replicas have no majority left when one is lost, and nobody knows when a newcomer has caught up.
        let loses = replicas >= 3 && joins.is_none() && stream("ending").chance(300);
        let node = u16::try_from(stream("lost node").below(u64::from(nodes))).unwrap_or(0);
        let lost = stream("how many are lost").between(1, u64::from((replicas - 1) / 2).max(1));
        let drawn = match loses {
            true if node > 0 && stream("how it is lost").chance(500) => Ending::ReplaceOne { node },
            true => Ending::Lose {
                nodes: (node..nodes).chain(0..node).take(usize::try_from(lost).unwrap_or(1)).collect(),
                cut_off: stream("how they are away").chance(400),
            },
            false => Ending::HealAll,
        };
        let mut ending = options.ending.clone().unwrap_or(drawn);
        if let Ending::Lose { nodes: lost, .. } = &mut ending {
            lost.retain(|node| *node < nodes);
        }
        // A replica that may have lost the end of its log waits for N-W+1 others, of which one would be gone for good.
        let drawn = |purpose| match &ending {
            Ending::HealAll => draw_fsync(&mut stream(purpose)),
            Ending::Lose { .. } | Ending::ReplaceOne { .. } => Fsync::Always,
        };
        let (upserts_fsync, events_fsync) = (drawn("upsert fsync"), drawn("event fsync"));
        let destroyed = ending.destroyed();
        let flips = destroyed.first().copied().or_else(|| Some(node).filter(|_| replicas >= 2 && joins.is_none()));
        let kinds = options.kinds.clone().unwrap_or_else(|| draw_kinds(options.seed));
        let storms = kinds.contains(&FaultKind::Storm);
        // Two nodes stay where one may lose what it holds; and those that agree on the catalog where some are lost for good.
        let stay = match destroyed.len() {
            0 if kinds.iter().any(|kind| kind.destroys()) => 2,
            0 => 0,
            lost => 2 * lost + 1,
        };
        let mut drained: Vec<u16> = (0..nodes).collect();
        let first = usize::try_from(stream("drained").below(u64::from(nodes))).unwrap_or(0);
        drained.rotate_left(first);
        drained.truncate(usize::from(nodes).saturating_sub(stay));
        let sizes = [4 << 10, 32 << 10, 1 << 20];
        let repair_every_ms = stream("repair every").pick(&REPAIR_EVERY_MS).copied().unwrap_or(600_000);
        let repairs = repair_every_ms < 600_000 && replicas >= 2;
        let loses_one_in = Some(stream("loses rows").between(1, 9)).filter(|_| repairs);
        let query_memory_bytes_max = match options.tight_limits {
            Some(false) => WIDE_QUERY_MEMORY,
            _ => stream("query memory").pick(&QUERY_MEMORY_BYTES).copied().unwrap_or(WIDE_QUERY_MEMORY),
        };
        Self {
            nodes,
            seconds: options.seconds(),
            replicas,
            upserts_windows: ["partition_size_hint", "VALUE"].iter().any(|word| upserts_parts.contains(word)),
            events_windows: windows.is_some(),
            event_times: options.event_times.unwrap_or_else(|| stream("event times").chance(500)),
            events_ttl: ttl.map(|seconds| seconds * 1_000_000),
            joins,
            menu: FaultMenu {
                hosts: nodes,
                kinds,
                gap_ms: options.fault_gap_ms.unwrap_or_else(|| draw_gap_ms(options.seed)),
                flips,
                flips_are_final: matches!(ending, Ending::Lose { .. }),
                joins,
                wiped: match ending {
                    Ending::ReplaceOne { node } => Some(node),
                    Ending::HealAll | Ending::Lose { .. } => None,
                },
                drained,
            },
            clients: options.clients.unwrap_or_else(|| stream("clients").between(2, 5)),
            load: Duration::from_secs(5),
            upserts: format!(
                "CREATE TABLE kv (k BIGINT PRIMARY KEY, v BIGINT NOT NULL, note BIGINT){upserts_parts}{}",
                with(upserts_fsync)
            ),
            events: format!(
                "CREATE TABLE ev (id BIGINT NOT NULL, amount BIGINT NOT NULL){}{kept}{windowed}",
                with(events_fsync)
            ),
            names: format!("CREATE TABLE dim (d BIGINT PRIMARY KEY, name VARCHAR NOT NULL){}", with(Fsync::Always)),
            upserts_fsync,
            events_fsync,
            memtable_bytes_max: options
                .memtable_bytes
                .or_else(|| stream("memtable").pick(&sizes).copied())
                .unwrap_or(1 << 20),
            page_pool_bytes_max: stream("page pool").pick(&[0, 64 << 10, 64 << 20]).copied().unwrap_or(0),
            compaction_bytes_per_second: stream("compaction").pick(&[0, 2 << 10, 64 << 20]).copied().unwrap_or(0),
            fill_bytes_per_second: stream("filling").pick(&[0, 0, 32 << 10]).copied().unwrap_or(0),
            fill_files_bytes_min: stream("filling by files").pick(&FILL_FILES_BYTES_MIN).copied().unwrap_or(0),
            replica_failures_max: stream("failures").pick(&[2, 3, 7]).copied().unwrap_or(7),
            read_lag_max: stream("read lag").pick(&[0, 3, 1_000]).copied().unwrap_or(0),
            scan_slice_rows_min: stream("scan slices").pick(&[1, 16, 128 << 10]).copied().unwrap_or(16),
            edge_window_bytes: stream("edge window")
                .pick(&[256, 2 << 10, 2 << 20, 2 << 20])
                .copied()
                .unwrap_or(2 << 20),
            copies,
            mix: options.mix.unwrap_or_else(|| Mix::draw(&mut stream("mix"))),
            patience: match options.patience_ms {
                Some(millis) => Duration::from_millis(millis),
                // Sorts that go to disk take their time.
                None if query_memory_bytes_max < WIDE_QUERY_MEMORY => Duration::from_millis(5_000),
                None => Duration::from_millis(stream("patience").pick(&PATIENCE_MS).copied().unwrap_or(5_000)),
            },
            tight: options
                .tight_limits
                .unwrap_or_else(|| stream("tight limits").chance(if storms { 600 } else { 200 })),
            query_memory_bytes_max,
            inflight_bytes_max: stream("rows under way").pick(&[32 << 10, 256 << 20]).copied().unwrap_or(256 << 20),
            replica_queue_bytes_max: stream("queues").pick(&[4 << 10, 128 << 20]).copied().unwrap_or(128 << 20),
            zones: stream("zones").pick(&ZONES).copied().unwrap_or(1),
            replace_after_ms: stream("replace after").pick(&REPLACE_AFTER_MS).copied().unwrap_or(600_000),
            repair_every_ms,
            purge_after_ms: stream("purge after").pick(&PURGE_AFTER_MS).copied().unwrap_or(3_600_000),
            objects_failing_permille: stream("objects").pick(&[0, 0, 20, 100]).copied().unwrap_or(0),
            loses_one_in,
            planted: options.planted,
            ending,
        }
    }

    /// How a node is set up.
    pub(super) fn node(&self, host: u16) -> NodeConfig {
        let address = |host: u16, port| HostId(host).address(port);
        let mut config = NodeConfig::new(DATA_DIR, address(host, CLUSTER_PORT), address(host, HTTP_PORT));
        if host > 0 {
            config.join =
                (0..self.nodes).filter(|other| *other != host).map(|other| address(other, CLUSTER_PORT)).collect();
        }
        config.zone = format!("z{}", host % self.zones);
        config.memtable_bytes_max = self.memtable_bytes_max;
        config.memtables_bytes_max = 4 * self.memtable_bytes_max;
        config.page_pool_bytes_max = self.page_pool_bytes_max;
        config.compaction_bytes_per_second = self.compaction_bytes_per_second;
        config.fill_bytes_per_second = self.fill_bytes_per_second;
        config.fill_files_bytes_min = self.fill_files_bytes_min;
        config.replica_failures_max = self.replica_failures_max;
        config.read_lag_max = self.read_lag_max;
        config.scan_slices_max = 3;
        config.scan_slice_rows_min = self.scan_slice_rows_min;
        config.edge_window_bytes = self.edge_window_bytes;
        config.disk_reserve_bytes = 1 << 20;
        config.query_memory_bytes_max = self.query_memory_bytes_max;
        if self.has_little_memory() {
            config.query_batch_rows = 8;
        }
        config.request_timeout_ms = 5_000;
        if self.tight {
            (config.queries_max, config.queries_queued_max) = (2, 2);
        }
        config.inflight_bytes_max = self.inflight_bytes_max;
        config.replica_queue_bytes_max = self.replica_queue_bytes_max;
        config.replace_after_ms = self.replace_after_ms;
        config.repair_every_ms = self.repair_every_ms;
        config.purge_after_ms = self.purge_after_ms;
        config.purge_tombstones_min = 1;
        config.backup_urls = vec![objects::PLACE.to_owned()];
        config.planted = self.planted;
        config
    }
}

/// Mostly the default.
fn draw_fsync(stream: &mut Stream) -> Fsync {
    match stream.below(20) {
        0..=3 => Fsync::Interval { ms: *stream.pick(&[20, 200, 2_000]).unwrap_or(&200) },
        4..=6 => Fsync::Never,
        _ => Fsync::Always,
    }
}
