//! Fetching: more columns of a few rows that a scan of the same snapshot found.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::Schema;
use shoal_kernel::{Error, ErrorCode, FetchSpec, Result};

use crate::segment::{PAGE_ROWS, Reads};
use crate::state::Snapshot;

/// Rows that lie together: which ones, ascending, and where they belong in the answer.
type Run = Vec<(u32, usize)>;

impl Snapshot {
    /// The wanted columns of the rows at these addresses, in the order of the addresses. Whether a row is dead is not asked: it
    /// was visible to the scan that gave the address.
    ///
    /// # Errors
    /// [`ErrorCode::UnknownColumn`]; [`ErrorCode::InvalidRequest`] for an address that is none of this snapshot;
    /// [`ErrorCode::Corruption`] if a page cannot be read.
    pub fn fetch(&self, spec: &FetchSpec, addresses: &[u64]) -> Result<RecordBatch> {
        let (state, layout) = (&self.state, &self.state.layout);
        let columns: Vec<usize> = spec.columns.iter().map(|id| layout.visible_place(*id)).collect::<Result<_>>()?;
        let mut runs: BTreeMap<(usize, u32), Run> = BTreeMap::new();
        for (at, &address) in addresses.iter().enumerate() {
            let (source, row) = ((address >> 32) as usize, address as u32);
            // Rows of a memtable lie in chunks, told apart by their first row; those of a segment in pages.
            let run = match source.checked_sub(state.segments.len()) {
                None => row / PAGE_ROWS as u32,
                Some(memtable) => {
                    let view = state.memtables.get(memtable).ok_or_else(stray)?;
                    view.chunks.partition_point(|chunk| chunk.end_row() <= row) as u32
                }
            };
            runs.entry((source, run)).or_default().push((row, at));
        }
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::with_capacity(runs.len()); columns.len()];
        let mut picks = vec![(0, 0); addresses.len()];
        let segments: Vec<_> = state.segments.values().collect();
        for (number, ((source, run), rows)) in runs.iter_mut().enumerate() {
            rows.sort_unstable();
            rows.iter().enumerate().for_each(|(row, &(_, at))| picks[at] = (number, row));
            let wanted = |first: u32| rows.iter().map(|(row, _)| row - first).collect::<Vec<u32>>();
            match segments.get(*source) {
                Some(view) => {
                    let segment = &view.segment;
                    if rows.last().is_some_and(|(row, _)| *row >= segment.rows()) {
                        return Err(stray());
                    }
                    let wanted = wanted(segment.page_rows(*run).start);
                    for (part, &column) in parts.iter_mut().zip(&columns) {
                        part.push(segment.read_column(layout, column, *run, Some(&wanted), Reads::Pooled)?);
                    }
                }
                None => {
                    let view = &state.memtables[*source - segments.len()];
                    let chunk = view.chunks.get(*run as usize).ok_or_else(stray)?;
                    let wanted = UInt32Array::from(wanted(chunk.first_row));
                    for (part, &column) in parts.iter_mut().zip(&columns) {
                        part.push(take(&layout.column_of(&chunk.batch, column)?, &wanted, None).map_err(failed)?);
                    }
                }
            }
        }
        let put_together = |(part, column): (Vec<ArrayRef>, &usize)| match part.is_empty() {
            true => Ok(arrow::array::new_empty_array(&layout.schema.columns[*column].data_type)),
            false => {
                let arrays: Vec<&dyn Array> = part.iter().map(AsRef::as_ref).collect();
                interleave(&arrays, &picks).map_err(failed)
            }
        };
        let arrays = parts.into_iter().zip(&columns).map(put_together).collect::<Result<Vec<_>>>()?;
        let fields: Vec<_> = columns.iter().map(|&column| layout.visible.field(column).clone()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(addresses.len()));
        RecordBatch::try_new_with_options(Schema::new(fields).into(), arrays, &options).map_err(failed)
    }
}

fn stray() -> Error {
    Error::new(ErrorCode::InvalidRequest, "there is no row at that address")
}

fn failed(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("cannot put fetched rows together: {error}"))
}
