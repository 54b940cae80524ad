//! Finds the output of a task on this node, also before the task has started.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_kernel::{Env, Error, ErrorCode, FragmentKey, QueryId, Result};
use tokio::sync::Notify;

use super::TaskOutput;
use crate::query::locked;

/// Ended attempts that are remembered, so that what arrives late is recognised at once.
const ENDED_MAX: usize = 4_096;

/// Outputs of this node's tasks.
#[derive(Default)]
pub(crate) struct EdgeTable {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    outputs: BTreeMap<FragmentKey, Arc<TaskOutput>>,
    ended: BTreeSet<(QueryId, u32)>,
    ended_order: VecDeque<(QueryId, u32)>,
}

impl EdgeTable {
    /// Makes outputs known.
    ///
    /// # Errors
    /// The attempt has ended already: it was released before it arrived here.
    pub(crate) fn insert(&self, query: QueryId, attempt: u32, outputs: Vec<Arc<TaskOutput>>) -> Result<()> {
        let mut state = locked(&self.state);
        if state.ended.contains(&(query, attempt)) {
            return Err(late(query, attempt));
        }
        state.outputs.extend(outputs.into_iter().map(|output| (output.key(), output)));
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Whether the attempt may still start things.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn check(&self, query: QueryId, attempt: u32) -> Result<()> {
        if locked(&self.state).ended.contains(&(query, attempt)) { Err(late(query, attempt)) } else { Ok(()) }
    }

    /// The output of a task; waits for it for at most `wait`.
    ///
    /// # Errors
    /// The attempt has ended, or the task did not start in time.
    pub(crate) async fn find(&self, env: &Env, key: FragmentKey, wait: Duration) -> Result<Arc<TaskOutput>> {
        let found = env.timeout(wait, async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Registered before looking, so that no change falls between.
                changed.as_mut().enable();
                {
                    let state = locked(&self.state);
                    if let Some(output) = state.outputs.get(&key) {
                        return Ok(output.clone());
                    }
                    if state.ended.contains(&(key.query, key.attempt)) {
                        return Err(late(key.query, key.attempt));
                    }
                }
                changed.await;
            }
        });
        found.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorCode::NodeLost, format!("task {key} did not start within {} ms", wait.as_millis())))
        })
    }

    /// The output of a task, if it is here now.
    pub(crate) fn get(&self, key: FragmentKey) -> Option<Arc<TaskOutput>> {
        locked(&self.state).outputs.get(&key).cloned()
    }

    /// Ends an attempt: its outputs are emptied, and whoever asks for one of them is told.
    pub(crate) fn end(&self, query: QueryId, attempt: u32) {
        let mut state = locked(&self.state);
        let of_attempt = |key: &FragmentKey| key.query == query && key.attempt == attempt;
        let ended: Vec<FragmentKey> = state.outputs.keys().filter(|key| of_attempt(key)).copied().collect();
        let outputs: Vec<_> = ended.iter().filter_map(|key| state.outputs.remove(key)).collect();
        if state.ended.insert((query, attempt)) {
            state.ended_order.push_back((query, attempt));
            if state.ended_order.len() > ENDED_MAX
                && let Some(oldest) = state.ended_order.pop_front()
            {
                state.ended.remove(&oldest);
            }
        }
        drop(state);
        for output in outputs {
            let error = over(query, attempt);
            output.abort(error);
        }
        self.changed.notify_waiters();
    }

    /// Bytes that wait in outputs.
    pub(crate) fn bytes(&self) -> usize {
        locked(&self.state).outputs.values().map(|output| output.bytes()).sum()
    }

    /// Outputs that are known.
    pub(crate) fn len(&self) -> usize {
        locked(&self.state).outputs.len()
    }
}

fn late(query: QueryId, attempt: u32) -> Error {
    metrics::counter!("shoal_query_late_messages_total").increment(1);
    over(query, attempt)
}

/// Counts only while the coordinator has not given the attempt up itself: this node was stopped, say, or took the
/// coordinator for dead. Then another attempt can do better, so it is an error that is tried again.
fn over(query: QueryId, attempt: u32) -> Error {
    Error::new(ErrorCode::NotReady, format!("attempt {attempt} of {query} has ended"))
}
