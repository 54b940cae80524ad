//! Who may run: a query is admitted whole or waits in line, and a line that is too long refuses.
//!
//! A pipelined query that is admitted in part waits for itself, so the unit is the query and the place where it is counted
//! is its coordinator.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use shoal_kernel::{Error, ErrorCode, QueryId, Result};
use tokio::sync::oneshot;

use super::locked;

/// The line, pure.
#[derive(Debug)]
struct Line {
    running: usize,
    running_max: usize,
    waiting: VecDeque<QueryId>,
    waiting_max: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Run,
    Wait,
    Refuse,
}

impl Line {
    fn enter(&mut self, query: QueryId) -> Answer {
        // Nobody overtakes those who wait.
        if self.running < self.running_max && self.waiting.is_empty() {
            self.running += 1;
            Answer::Run
        } else if self.waiting.len() < self.waiting_max {
            self.waiting.push_back(query);
            Answer::Wait
        } else {
            Answer::Refuse
        }
    }

    /// A running query ends; the next one takes its turn.
    fn leave(&mut self) -> Option<QueryId> {
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.running = self.running.saturating_sub(1);
        }
        next
    }

    fn give_up(&mut self, query: QueryId) {
        self.waiting.retain(|waiting| *waiting != query);
    }

    fn place(&self, query: QueryId) -> Option<u32> {
        let place = self.waiting.iter().position(|waiting| *waiting == query)?;
        u32::try_from(place + 1).ok()
    }
}

struct State {
    line: Line,
    turns: Vec<(QueryId, oneshot::Sender<Permit>)>,
}

/// The line at one coordinator. Cheap to clone.
#[derive(Clone)]
pub(super) struct Admission(Arc<Mutex<State>>);

/// The right to run; dropping it gives the next in line its turn.
pub(super) struct Permit(Admission);

/// A place in the line; dropping it gives the place up.
pub(super) struct Ticket {
    query: QueryId,
    admission: Admission,
    turn: oneshot::Receiver<Permit>,
}

/// What a query gets at the door.
pub(super) enum Entry {
    /// It may run.
    Run(Permit),
    /// It waits.
    Wait(Ticket),
}

impl Admission {
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        let line = Line { running: 0, running_max: running_max.max(1), waiting: VecDeque::new(), waiting_max };
        Self(Arc::new(Mutex::new(State { line, turns: Vec::new() })))
    }

    /// Asks for admission.
    ///
    /// # Errors
    /// [`ErrorCode::Overloaded`]: the line is full.
    pub(super) fn enter(&self, query: QueryId) -> Result<Entry> {
        let mut state = locked(&self.0);
        let entry = match state.line.enter(query) {
            Answer::Run => Entry::Run(Permit(self.clone())),
            Answer::Wait => {
                let (sender, turn) = oneshot::channel();
                state.turns.push((query, sender));
                Entry::Wait(Ticket { query, admission: self.clone(), turn })
            }
            Answer::Refuse => {
                let (running, waiting) = (state.line.running, state.line.waiting.len());
                metrics::counter!("shoal_queries_refused_total").increment(1);
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!("{running} queries run and {waiting} wait, more may not (queries_queued_max)"),
                )
                .with_retry_after_ms(1_000)
                .with_help("try again in a moment, at another node, or raise queries_queued_max"));
            }
        };
        state.gauge();
        Ok(entry)
    }

    /// The query's place in the line, from 1.
    pub(super) fn place(&self, query: QueryId) -> Option<u32> {
        locked(&self.0).line.place(query)
    }
}

impl State {
    fn gauge(&self) {
        metrics::gauge!("shoal_queries_running").set(self.line.running as f64);
        metrics::gauge!("shoal_queries_queued").set(self.line.waiting.len() as f64);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = locked(&self.0.0);
        let mut refused = None;
        if let Some(next) = state.line.leave() {
            let permit = Permit(self.0.clone());
            refused = match state.turns.iter().position(|(query, _)| *query == next) {
                Some(at) => state.turns.swap_remove(at).1.send(permit).err(),
                None => Some(permit),
            };
        }
        state.gauge();
        drop(state);
        // A permit that nobody took passes on to the next in line, outside the lock.
        drop(refused);
    }
}

impl Ticket {
    /// Waits for the turn.
    ///
    /// # Errors
    /// The node is stopping.
    pub(super) async fn turn(mut self) -> Result<Permit> {
        (&mut self.turn).await.map_err(|_| Error::new(ErrorCode::NotReady, "the node is stopping"))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = locked(&self.admission.0);
        state.line.give_up(self.query);
        state.turns.retain(|(query, _)| *query != self.query);
        state.gauge();
        drop(state);
        // The turn may have come at this very moment: pass it on.
        self.turn.close();
        drop(self.turn.try_recv());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(number: u128) -> QueryId {
        QueryId(number)
    }

    fn waits(entry: Entry) -> Ticket {
        match entry {
            Entry::Wait(ticket) => ticket,
            Entry::Run(_) => panic!("admitted at once"),
        }
    }

    fn runs(entry: Entry) -> Permit {
        match entry {
            Entry::Run(permit) => permit,
            Entry::Wait(_) => panic!("made to wait"),
        }
    }

    #[tokio::test]
    async fn first_come_first_served_and_a_full_line_refuses() {
        let admission = Admission::new(1, 2);
        let first = runs(admission.enter(query(1)).unwrap());
        let second = waits(admission.enter(query(2)).unwrap());
        let third = waits(admission.enter(query(3)).unwrap());
        assert_eq!(admission.enter(query(4)).err().unwrap().code(), ErrorCode::Overloaded);
        assert_eq!((admission.place(query(2)), admission.place(query(3))), (Some(1), Some(2)));
        drop(first);
        let second = second.turn().await.unwrap();
        assert_eq!(admission.place(query(3)), Some(1));
        drop(second);
        let third = third.turn().await.unwrap();
        drop(third);
        drop(runs(admission.enter(query(5)).unwrap()));
    }

    #[test]
    fn whoever_gives_up_neither_keeps_a_place_nor_loses_a_turn() {
        let admission = Admission::new(1, 2);
        let first = runs(admission.enter(query(1)).unwrap());
        let second = waits(admission.enter(query(2)).unwrap());
        let third = waits(admission.enter(query(3)).unwrap());
        drop(second);
        assert_eq!(admission.place(query(3)), Some(1));
        // The turn is given to the third, who leaves without having taken it.
        drop(first);
        drop(third);
        drop(runs(admission.enter(query(4)).unwrap()));
        assert_eq!(locked(&admission.0).line.running, 0);
    }
}
