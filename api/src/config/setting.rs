//! Every setting, once: flags, variables, files and the documentation read this table.

/// A setting of `shoal start`.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its key in the file; `SHOAL_` and the name in capitals in the environment; `--set name=value` as a flag.
    pub name: &'static str,
    /// Its default, for the eye.
    pub default: &'static str,
    /// What it means.
    pub about: &'static str,
}

impl Setting {
    /// The setting of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }
}

pub(super) fn names() -> impl Iterator<Item = &'static str> + Clone {
    SETTINGS.iter().map(|setting| setting.name)
}

macro_rules! settings {
    ($($name:literal, $default:literal, $about:literal;)+) => {
        /// All of them, in the order in which they are explained.
        pub const SETTINGS: &[Setting] = &[$(Setting { name: $name, default: $default, about: $about }),+];
    };
}

settings! {
    "data_dir", "", "where everything durable lies";
    "http", "127.0.0.1:9175", "where clients are served";
    "cluster", "127.0.0.1:9176", "where other nodes are served: TCP and UDP";
    "join", "", "nodes to join through, separated by commas; none founds a cluster, or goes on with the one in data_dir";
    "zone", "", "with whom it fails, such as a rack: replicas of a partition are spread over zones; nodes without are one zone";
    "cluster_secret", "shoal", "shared by all nodes; authenticates what they say to each other";
    "clock_skew_max_ms", "500", "how far a clock may be ahead of most nodes' clocks";
    "replace_after_ms", "600000", "replicas of a node that has been down for so long are made anew on others";
    "repair_every_ms", "600000", "how often each replica is compared with each of its peers, and repaired; 0 is never";
    "purge_after_ms", "3600000", "deletions are forgotten when they are so old and every replica has them, and older writes are refused; 0 is never";
    "purge_tombstones_min", "1000", "deletions that old of a replica that make it worth its while";
    "memtable_bytes_max", "67108864", "a memtable is flushed beyond this";
    "memtables_bytes_max", "268435456", "bytes of one replica that may wait to be flushed, four memtables at least unless given; beyond it writes are refused as overload";
    "disk_reserve_bytes", "268435456", "writes stop when less is free";
    "page_pool_bytes_max", "268435456", "memory that all replicas of the node keep pages of segments in; 0 keeps none";
    "compactions_max", "half the cores, 1 to 8", "replicas of the node that compact at once";
    "compaction_bytes_per_second", "67108864", "bytes that compaction reads and writes; 0 is no limit; OPTIMIZE TABLE is not held back";
    "fill_bytes_per_second", "67108864", "bytes that replicas pull which are new, were emptied or are far behind; 0 is no limit";
    "fill_files_bytes_min", "16777216", "a replica that is new or was emptied gets whole files from a peer that has so many bytes, or else rows";
    "backup_bytes_per_second", "67108864", "bytes of the node's disk that backups and restores read or write; 0 is no limit";
    "backup_urls", "s3://,file://", "beginnings of the URLs that backups may be at, separated by commas; nothing allows none";
    "replica_failures_max", "7", "failures of a replica in a row after which another node is to have one in its place";
    "read_lag_max", "1000", "accepts that a replica may lack of its peers' before queries read elsewhere, if they can";
    "segments_overdue_max", "64", "segments of a replica that may wait to be merged before its writes are refused as overload";
    "query_memory_bytes_max", "2147483648", "memory of all queries of this node together";
    "spill_bytes_max", "17179869184", "bytes of this node's disk that queries may use when query memory does not hold what they sort or group; 0 is none";
    "queries_max", "32", "queries that run at once; further ones wait";
    "queries_queued_max", "256", "queries that may wait; further ones are refused";
    "scan_slices_max", "the cores, 1 to 32", "tasks that share the scan of one partition";
    "scan_slice_rows_min", "131072", "rows that make such a task worth its while";
    "edge_window_bytes", "2097152", "bytes that a task of a query may be ahead of each that takes its rows";
    "inflight_bytes_max", "268435456", "bytes of rows that may be under way from this node to replicas; beyond it writes are refused as overload";
    "replica_queue_bytes_max", "134217728", "bytes of writes that may wait for one replica of this node; beyond it they are refused as overload";
    "request_timeout_ms", "300000", "the deadline of a request that names none";
    "http_workers", "the cores, 2 to 8", "threads that serve clients";
    "http_connections_max", "4096", "connections of clients";
    "ingest_body_bytes_max", "134217728", "bytes of one ingest body";
    "ingest_line_bytes_max", "16777216", "bytes of one line of an ingest body";
    "ingest_decoded_bytes_max", "1073741824", "bytes of one ingest body's rows once decoded";
    "ingest_memory_bytes_max", "536870912", "bytes of all ingest bodies under way";
    "body_idle_ms", "60000", "how long a request's body may stand still";
    "ws_sessions_max", "1024", "WebSocket sessions";
    "ws_queries_max", "8", "queries of one WebSocket session at once";
    "ws_frame_bytes_max", "2097152", "bytes of one message from a WebSocket client";
    "ws_idle_ms", "60000", "how long a WebSocket client may be silent";
    "log", "info", "what is logged, such as info,shoal_actors=debug";
    "log_json", "false", "log lines as JSON";
}
