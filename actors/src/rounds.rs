//! A question that many ask and one answer serves: it is put once at a time, and whoever asks gets the answer of a round that
//! began after he had asked.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_kernel::Env;
use tokio::sync::oneshot;

/// The rounds of one question.
pub(crate) struct Rounds<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    running: bool,
    /// Those who asked after the present round had begun.
    waiting: Vec<oneshot::Sender<T>>,
}

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { running: false, waiting: Vec::new() })))
    }
}

impl<T> Clone for Rounds<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Send + 'static> Rounds<T> {
    /// Asks. Every call gives the same question, so any of them may put it for all. The answer fails if it breaks off.
    pub(crate) fn ask<F>(
        &self,
        env: &Env,
        name: &'static str,
        question: impl Fn() -> F + Send + 'static,
    ) -> oneshot::Receiver<T>
    where
        F: Future<Output = T> + Send,
    {
        let (answer, answered) = oneshot::channel();
        let mut state = self.state();
        state.waiting.push(answer);
        if !std::mem::replace(&mut state.running, true) {
            let mut under_way = UnderWay { rounds: self.clone(), ended: false };
            env.spawn(name, async move {
                while let Some(waiting) = under_way.begin() {
                    let answer = question().await;
                    for waiting in waiting {
                        let _ = waiting.send(answer.clone());
                    }
                }
            });
        }
        answered
    }
}

impl<T> Rounds<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that puts the question.
struct UnderWay<T> {
    rounds: Rounds<T>,
    ended: bool,
}

impl<T> UnderWay<T> {
    /// Whom the next round is for; the end if nobody waits any more.
    fn begin(&mut self) -> Option<Vec<oneshot::Sender<T>>> {
        let mut state = self.rounds.state();
        let mut waiting = std::mem::take(&mut state.waiting);
        waiting.retain(|waiting| !waiting.is_closed());
        state.running = !waiting.is_empty();
        self.ended = waiting.is_empty();
        (!self.ended).then_some(waiting)
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        // It broke off in the middle of a round: those who wait are told so, and the next one begins anew.
        if !self.ended {
            let mut state = self.rounds.state();
            state.running = false;
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use shoal_kernel::env::real::{RealOptions, env};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn who_asks_during_a_round_waits_for_the_next_one() {
        let env = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 8, compute_threads: 1 }).unwrap();
        let (begun, go_on) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let rounds = Rounds::default();
        let ask = || {
            let (begun, go_on) = (begun.clone(), go_on.clone());
            rounds.ask(&env, "round", move || {
                let (begun, go_on) = (begun.clone(), go_on.clone());
                async move {
                    let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
                    go_on.acquire().await.unwrap().forget();
                    number
                }
            })
        };
        let first = ask();
        while begun.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let (second, third, gone) = (ask(), ask(), ask());
        drop(gone);
        go_on.add_permits(1);
        assert_eq!(first.await.unwrap(), 1);
        go_on.add_permits(1);
        assert_eq!((second.await.unwrap(), third.await.unwrap()), (2, 2), "one round serves all who wait");
        go_on.add_permits(1);
        assert_eq!(ask().await.unwrap(), 3);
        drop(ask());
        while rounds.state().running {
            go_on.add_permits(1);
            tokio::task::yield_now().await;
        }
    }
}
