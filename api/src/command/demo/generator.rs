//! Live data: a few departures per second, the same ones in every run, written through whichever node answers.

#![allow(clippy::disallowed_methods, reason = "live data carries the real time and comes at a real pace")]

use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::client::Client;

const SEED: u64 = 9175;

/// One batch of one to five departures.
const EVERY: Duration = Duration::from_secs(1);

const AIRPORTS: [&str; 16] =
    ["ATL", "BOS", "CLT", "DEN", "DFW", "DTW", "EWR", "IAH", "JFK", "LAS", "LAX", "MSP", "ORD", "PHX", "SEA", "SFO"];

pub(super) struct Generator {
    stop: mpsc::SyncSender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Generator {
    pub(super) fn start(clients: Vec<Client>) -> Self {
        let (stop, stopped) = mpsc::sync_channel(1);
        let run = move || {
            let mut rng = StdRng::seed_from_u64(SEED);
            let mut next = 1;
            while stopped.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                let (rows, count) = departures(&mut rng, next);
                let token = format!("demo-departures-{next}");
                next += count;
                // The token makes it harmless that a node may have taken the rows before it fell silent.
                let _ = clients.iter().find(|client| {
                    client.ingest("departures", "application/x-ndjson", rows.as_bytes(), Some(&token), None).is_ok()
                });
            }
        };
        let thread = std::thread::Builder::new().name("demo-departures".into()).spawn(run).ok();
        Self { stop, thread }
    }

    pub(super) fn stop(self) {
        drop(self.stop);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

fn departures(rng: &mut StdRng, first: u64) -> (String, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    let count = rng.random_range(1..=5);
    let mut rows = String::new();
    for id in first..first + count {
        let origin = rng.random_range(0..AIRPORTS.len());
        let destination = (origin + rng.random_range(1..AIRPORTS.len())) % AIRPORTS.len();
        // Mostly on time, sometimes very late.
        let delay = if rng.random_bool(0.8) { rng.random_range(-10..15) } else { rng.random_range(15..240) };
        let row = serde_json::json!({
            "id": id, "ts": now, "origin": AIRPORTS[origin], "destination": AIRPORTS[destination], "delay": delay,
        });
        rows.push_str(&row.to_string());
        rows.push('\n');
    }
    (rows, count)
}
