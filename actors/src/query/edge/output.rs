//! The output of a running task: slots with wakers, charged to the node's query memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use arrow::record_batch::RecordBatch;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use futures::Stream;
use shoal_kernel::{Error, ErrorCode, FragmentKey, Result};

use super::slots::{Slots, Taken, Verdict};
use crate::query::locked;

/// Bytes of a batch on an edge or on its way to the client; larger ones are cut, down to single rows.
pub(crate) const BATCH_BYTES_TARGET: usize = 1 << 20;

/// The output of one task. Shared by its producer, its consumers and the node's table of edges.
pub(crate) struct TaskOutput {
    key: FragmentKey,
    shared: Mutex<Shared>,
}

struct Shared {
    slots: Slots<RecordBatch>,
    producer: Option<Waker>,
    consumers: Vec<Option<Waker>>,
    memory: MemoryReservation,
}

impl Shared {
    fn wake_producer(&mut self) {
        if let Some(waker) = self.producer.take() {
            waker.wake();
        }
    }

    fn wake_consumer(&mut self, slot: usize) {
        if let Some(waker) = self.consumers.get_mut(slot).and_then(Option::take) {
            waker.wake();
        }
    }
}

impl TaskOutput {
    /// An output with `slots` slots of `window_bytes` each.
    pub(crate) fn new(key: FragmentKey, slots: u32, window_bytes: usize, memory: &Arc<dyn MemoryPool>) -> Arc<Self> {
        let memory = MemoryConsumer::new("exchange").register(memory);
        let shared = Shared {
            slots: Slots::new(slots, window_bytes),
            producer: None,
            consumers: (0..slots).map(|_| None).collect(),
            memory,
        };
        Arc::new(Self { key, shared: Mutex::new(shared) })
    }

    /// The task.
    pub(crate) fn key(&self) -> FragmentKey {
        self.key
    }

    /// Puts a batch into a slot; waits while its window is full.
    ///
    /// # Errors
    /// [`ErrorCode::OutOfMemory`]: the batch had to go above the window and the node's query memory is used up.
    pub(crate) async fn put(&self, slot: u32, batch: RecordBatch) -> Result<()> {
        let (slot, bytes) = (slot as usize, batch_bytes(&batch));
        let mut batch = Some(batch);
        std::future::poll_fn(|context| {
            let mut shared = locked(&self.shared);
            match shared.slots.verdict(slot, bytes) {
                Verdict::Wait => {
                    shared.producer = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Verdict::Discard => return Poll::Ready(Ok(())),
                // Within the window memory is charged but not refused: one window per slot was granted with the task.
                Verdict::Put => shared.memory.grow(bytes),
                Verdict::PutAbove => {
                    if shared.memory.try_grow(bytes).is_err() {
                        return Poll::Ready(Err(Error::new(
                            ErrorCode::OutOfMemory,
                            format!("an exchange had to hold {} bytes more than query memory has left", bytes),
                        )
                        .with_help("raise query_memory_bytes_max, or make the query's intermediate results smaller")));
                    }
                    metrics::counter!("shoal_edge_above_window_bytes_total").increment(bytes as u64);
                }
            }
            if let Some(batch) = batch.take() {
                shared.slots.put(slot, batch, bytes);
            }
            shared.wake_consumer(slot);
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Completes when no consumer is left: the task has nothing to work for.
    pub(crate) async fn unwanted(&self) {
        std::future::poll_fn(|context| {
            let mut shared = locked(&self.shared);
            if shared.slots.wanted() {
                shared.producer = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// The task has ended. Only the first end counts.
    pub(crate) fn end(&self, end: Result<()>) {
        let mut shared = locked(&self.shared);
        let dropped = shared.slots.end(end);
        shared.memory.shrink(dropped);
        for slot in 0..shared.consumers.len() {
            shared.wake_consumer(slot);
        }
    }

    /// Nobody will read the slot: what is in it, and all that would come, is dropped. Nothing happens if somebody reads it already.
    pub(crate) fn give_back(&self, slot: u32) {
        if locked(&self.shared).slots.is_unclaimed(slot as usize) {
            self.discard(slot);
        }
    }

    fn discard(&self, slot: u32) {
        let mut shared = locked(&self.shared);
        let dropped = shared.slots.discard(slot as usize);
        shared.memory.shrink(dropped);
        shared.wake_producer();
    }

    /// Drops everything, for the end of a query. Whoever still reads gets the error, also where the task itself had ended well.
    pub(crate) fn abort(&self, error: Error) {
        let mut shared = locked(&self.shared);
        let dropped = shared.slots.abort(error);
        shared.memory.shrink(dropped);
        shared.wake_producer();
        for slot in 0..shared.consumers.len() {
            shared.wake_consumer(slot);
        }
    }

    /// Starts reading a slot.
    ///
    /// # Errors
    /// There is no such slot, or somebody reads or has read it: merging it twice would double rows.
    pub(crate) fn claim(self: &Arc<Self>, slot: u32) -> Result<SlotReader> {
        if locked(&self.shared).slots.claim(slot as usize) {
            Ok(SlotReader { output: self.clone(), slot })
        } else {
            Err(Error::internal(format!("slot {slot} of {} cannot be read, or not twice", self.key)))
        }
    }

    /// Bytes that wait in all slots.
    pub(crate) fn bytes(&self) -> usize {
        locked(&self.shared).slots.bytes()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.memory.free();
    }
}

/// The reading end of a slot. Ends with `None` only if the producer said that it was all; dropping it discards the rest.
pub(crate) struct SlotReader {
    output: Arc<TaskOutput>,
    slot: u32,
}

impl Stream for SlotReader {
    type Item = Result<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let slot = self.slot as usize;
        let mut shared = locked(&self.output.shared);
        match shared.slots.take(slot) {
            Taken::Item(batch, bytes) => {
                shared.memory.shrink(bytes);
                shared.wake_producer();
                Poll::Ready(Some(Ok(batch)))
            }
            Taken::Nothing => {
                if let Some(waker) = shared.consumers.get_mut(slot) {
                    *waker = Some(context.waker().clone());
                }
                // A starving slot may let a waiting producer go on.
                shared.wake_producer();
                Poll::Pending
            }
            Taken::End => Poll::Ready(None),
            Taken::Failed(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

impl Drop for SlotReader {
    fn drop(&mut self) {
        self.output.discard(self.slot);
    }
}

/// Bytes that a batch takes; slices count for what they show, not for what they share.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    shoal_storage::batch_bytes(batch) + size_of::<RecordBatch>()
}

/// Cuts a batch into pieces of at most `bytes_max` bytes and `rows_max` rows, in order; a single row is never cut.
pub(crate) fn cut(batch: RecordBatch, bytes_max: usize, rows_max: usize) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    let bytes = batch_bytes(&batch);
    if rows <= 1 || (bytes <= bytes_max && rows <= rows_max) {
        return vec![batch];
    }
    let pieces = bytes.div_ceil(bytes_max.max(1)).max(rows.div_ceil(rows_max.max(1))).clamp(2, rows);
    let step = rows.div_ceil(pieces);
    (0..rows)
        .step_by(step)
        // Rows differ in size: a piece may have to be cut again.
        .flat_map(|start| cut(batch.slice(start, step.min(rows - start)), bytes_max, rows_max))
        .collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use datafusion::execution::memory_pool::GreedyMemoryPool;
    use futures::StreamExt;
    use shoal_kernel::{FragmentId, QueryId};

    use super::*;

    fn numbers(rows: i64) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    fn output(slots: u32, window_bytes: usize, memory_bytes: usize) -> (Arc<TaskOutput>, Arc<dyn MemoryPool>) {
        let memory: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(memory_bytes));
        let key = FragmentKey { query: QueryId(1), fragment: FragmentId(0), task: 0, attempt: 0 };
        (TaskOutput::new(key, slots, window_bytes, &memory), memory)
    }

    #[tokio::test]
    async fn producer_and_consumer_take_turns_within_the_window() {
        let (output, memory) = output(1, 4_000, 1 << 20);
        let reader = output.claim(0).unwrap();
        let producing = async {
            for rows in 1..=100 {
                output.put(0, numbers(rows)).await.unwrap();
                assert!(output.bytes() <= 4_000 || rows > 480);
            }
            output.end(Ok(()));
        };
        let (rows, ()) = tokio::join!(reader.map(|batch| batch.unwrap().num_rows()).collect::<Vec<_>>(), producing);
        assert_eq!(rows, (1..=100).collect::<Vec<_>>());
        assert_eq!(memory.reserved(), 0);
    }

    #[tokio::test]
    async fn going_above_the_window_needs_memory() {
        let (output, memory) = output(2, 100, 20_000);
        let _full = output.claim(0).unwrap();
        let mut starving = output.claim(1).unwrap();
        assert!(futures::poll!(starving.next()).is_pending());
        let error = loop {
            if let Err(error) = output.put(0, numbers(1_000)).await {
                break error;
            }
        };
        assert_eq!(error.code(), ErrorCode::OutOfMemory);
        output.end(Err(error.clone()));
        assert_eq!(starving.next().await.unwrap().unwrap_err(), error);
        assert_eq!(memory.reserved(), 0);
    }

    #[tokio::test]
    async fn dropping_every_reader_ends_the_producer() {
        let (output, memory) = output(2, 100, 20_000);
        let reader = output.claim(0).unwrap();
        assert!(output.claim(0).is_err());
        output.put(0, numbers(10)).await.unwrap();
        drop(reader);
        output.put(0, numbers(10_000)).await.unwrap();
        let mut unwanted = std::pin::pin!(output.unwanted());
        assert!(futures::poll!(&mut unwanted).is_pending());
        output.discard(1);
        unwanted.await;
        assert_eq!(memory.reserved(), 0);
    }

    /// A node that stops ends its tasks, also those that have ended well and of which a slow consumer has not taken everything.
    #[tokio::test]
    async fn what_is_thrown_away_is_never_taken_for_the_end() {
        let (output, memory) = output(2, 4_000, 1 << 20);
        let (mut reader, mut done) = (output.claim(0).unwrap(), output.claim(1).unwrap());
        output.put(0, numbers(10)).await.unwrap();
        output.end(Ok(()));
        output.give_back(0);
        assert!(done.next().await.is_none());
        output.abort(Error::new(ErrorCode::NotReady, "it has ended"));
        assert_eq!(reader.next().await.unwrap().unwrap_err().code(), ErrorCode::NotReady);
        assert_eq!(memory.reserved(), 0);
    }

    #[test]
    fn cuts_by_bytes_even_when_one_row_weighs_more_than_the_rest() {
        let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..100).map(|row| match row {
            50 => "x".repeat(5_000),
            _ => "y".repeat(10),
        })));
        let batch = RecordBatch::try_from_iter([("s", column)]).unwrap();
        let pieces = cut(batch.clone(), 1_000, 30);
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 100);
        assert!(pieces.iter().all(|piece| piece.num_rows() == 1 || batch_bytes(piece) <= 1_000));
        assert!(pieces.iter().all(|piece| piece.num_rows() <= 30));
        assert_eq!(arrow::compute::concat_batches(&batch.schema(), &pieces).unwrap(), batch);
        assert_eq!(cut(numbers(0), 10, 10).len(), 1);
    }
}
