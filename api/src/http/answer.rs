//! Runs the statements of one request, one after the other, and turns what they say into bytes as they say it.

use std::collections::VecDeque;
use std::sync::Arc;

use actix_web::web::{Bytes, Data};
use futures::Stream;
use shoal_actors::service::{CommandDone, QueryEvent, QueryStream, SqlRequest};
use shoal_kernel::{Applied, Error, ErrorCode, QueryId};

use super::Doors;
use super::problem::{Failure, Problem};
use super::running::Guard;
use crate::format::{Encoder, Told, Totals};

/// A body that must not look complete: the connection is closed without the last chunk.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut: {0}")]
pub(super) struct Cut(Error);

/// One answer under way.
pub(super) struct Answer {
    doors: Data<Doors>,
    guard: Arc<Guard>,
    waiting: VecDeque<SqlRequest>,
    running: Option<QueryStream>,
    encoder: Box<dyn Encoder>,
    totals: Totals,
    statement: usize,
    statements: usize,
    completed: Vec<CommandDone>,
    in_table: bool,
    out: Vec<u8>,
    finished: bool,
}

impl Answer {
    pub(super) fn new(
        doors: Data<Doors>,
        guard: Guard,
        statements: VecDeque<SqlRequest>,
        encoder: Box<dyn Encoder>,
    ) -> Self {
        Self {
            doors,
            guard: Arc::new(guard),
            statements: statements.len(),
            waiting: statements,
            running: None,
            encoder,
            totals: Totals::default(),
            statement: 0,
            completed: Vec::new(),
            in_table: false,
            out: Vec::new(),
            finished: false,
        }
    }

    /// Runs until the answer is complete (true) or at least `bytes` of it are ready. Nothing has left for the client yet, so
    /// a failure may still become a response of its own.
    pub(super) async fn hold_back(&mut self, bytes: usize) -> Result<bool, Failure> {
        while !self.finished && self.out.len() < bytes {
            if let Err(error) = self.step().await {
                let failure = Failure::of_query(error, self.guard.id);
                return Err(if self.statements > 1 {
                    failure.at_statement(self.statement, std::mem::take(&mut self.completed))
                } else {
                    failure
                });
            }
        }
        Ok(self.finished)
    }

    /// What is ready.
    pub(super) fn take_bytes(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.out))
    }

    /// The rest, as a body. Dropping it, as happens when the client goes away, cancels what runs.
    pub(super) fn into_body(self) -> impl Stream<Item = Result<Bytes, Cut>> {
        futures::stream::unfold((self, None), |(mut answer, cut)| async move {
            if let Some(error) = cut {
                return Some((Err(Cut(error)), (answer, None)));
            }
            let mut cut = None;
            while answer.out.is_empty() && !answer.finished {
                if let Err(error) = answer.step().await {
                    cut = answer.fail(error);
                }
            }
            match (answer.out.is_empty(), cut) {
                (true, None) => None,
                (true, Some(error)) => Some((Err(Cut(error)), (answer, None))),
                (false, cut) => Some((Ok(answer.take_bytes()), (answer, cut))),
            }
        })
    }

    /// Says the failure in the body, or hands it back if only cutting the connection says it.
    fn fail(&mut self, error: Error) -> Option<Error> {
        self.finished = true;
        self.running = None;
        self.waiting.clear();
        let mut problem = Problem::new(&error, Some(self.guard.id));
        if self.statements > 1 {
            problem.statement = Some(self.statement);
        }
        match self.encoder.error(&problem, &mut self.out) {
            Told::InBody => None,
            Told::ByCutting => Some(error),
        }
    }

    /// Takes in one event.
    async fn step(&mut self) -> Result<(), Error> {
        let Some(running) = &mut self.running else {
            return self.next_statement().await;
        };
        let event = tokio::select! {
            biased;
            () = self.guard.cancel.cancelled() => return Err(cancelled(self.guard.id, Applied::Unknown)),
            event = running.next() => event,
        };
        match event {
            Some(QueryEvent::Schema(schema)) => {
                self.in_table = true;
                self.encoder.schema(&schema, &mut self.out)
            }
            Some(QueryEvent::Batch(batch)) => self.encoder.batch(&batch, &mut self.out),
            Some(QueryEvent::Progress(progress)) => {
                self.guard.progress(progress);
                Ok(())
            }
            Some(QueryEvent::Done(done)) => {
                self.encoder.command(&done, &mut self.out)?;
                self.completed.push(done);
                Ok(())
            }
            Some(QueryEvent::End(summary)) => {
                self.totals.add(&summary);
                if std::mem::take(&mut self.in_table) {
                    self.encoder.table_end(&mut self.out);
                }
                self.running = None;
                Ok(())
            }
            Some(QueryEvent::Error(error)) => Err(error),
            None => Err(Error::internal("the query ended without saying so").with_applied(Applied::Unknown)),
        }
    }

    async fn next_statement(&mut self) -> Result<(), Error> {
        let Some(request) = self.waiting.pop_front() else {
            self.encoder.end(&self.totals, &mut self.out)?;
            self.finished = true;
            return Ok(());
        };
        self.statement += 1;
        let start = self.doors.backend.sql(request);
        let stream = tokio::select! {
            biased;
            () = self.guard.cancel.cancelled() => return Err(cancelled(self.guard.id, Applied::Unknown)),
            stream = start => stream?,
        };
        self.running = Some(stream);
        Ok(())
    }
}

fn cancelled(id: QueryId, applied: Applied) -> Error {
    Error::new(ErrorCode::Cancelled, format!("query {id} was cancelled")).with_applied(applied)
}
