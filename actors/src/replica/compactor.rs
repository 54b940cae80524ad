//! Compaction in the background: merges that are due, one after the other, at the node's pace.

use std::sync::Arc;

use shoal_kernel::{Env, Error, Rare, Result};
use shoal_storage::{CompactionProgress, Store};

use crate::node::pace::Pace;

/// Counted among those that run until it is dropped, however its task ends.
struct Running {
    end: &'static str,
}

impl Running {
    fn begin() -> Self {
        metrics::gauge!("shoal_compactions_running").increment(1.0);
        Self { end: "given_up" }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        metrics::gauge!("shoal_compactions_running").decrement(1.0);
        metrics::counter!("shoal_compactions_total", "end" => self.end).increment(1);
    }
}

/// Merges until nothing is due. To be dropped at any moment: the step in hand ends, and the store keeps what was begun.
///
/// # Errors
/// As [`Store::compact_step`].
pub(super) async fn compact(env: &Env, store: &Arc<Store>, pace: &Pace) -> Result<()> {
    while store.segments_overdue() > 0 {
        // Given back after each merge, so that many replicas take turns.
        let Some(_place) = pace.place().await else { return Ok(()) };
        let mut running = Running::begin();
        loop {
            let (step_bytes, stepping) = (pace.step_bytes(), store.clone());
            let step = env.blocking(move || stepping.compact_step(step_bytes)).await.map_err(Error::from);
            let step = step.flatten().inspect_err(|_| running.end = "failed")?;
            metrics::counter!("shoal_compaction_read_bytes_total").increment(step.bytes_read);
            metrics::counter!("shoal_compaction_written_bytes_total").increment(step.bytes_written);
            running.end = match step.progress {
                CompactionProgress::Idle => "nothing_due",
                CompactionProgress::Running => running.end,
                CompactionProgress::Done => "done",
            };
            if step.died_meanwhile > 0 {
                env.reached(Rare::DiedWhileMerged);
            }
            let waited = pace.pay(step.bytes_read + step.bytes_written).await;
            if !waited.is_zero() {
                metrics::histogram!("shoal_compaction_throttled_seconds").record(waited.as_secs_f64());
            }
            match step.progress {
                CompactionProgress::Running => {}
                CompactionProgress::Done => break,
                CompactionProgress::Idle => return Ok(()),
            }
        }
    }
    Ok(())
}

/// A replica's share of the node's figure of segments that wait to be merged.
#[derive(Default)]
pub(super) struct Overdue(usize);

impl Overdue {
    pub(super) fn set(&mut self, segments: usize) {
        metrics::gauge!("shoal_compaction_segments_overdue").increment(segments as f64 - self.0 as f64);
        self.0 = segments;
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.set(0);
    }
}
