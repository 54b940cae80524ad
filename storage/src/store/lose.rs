//! For tests of what finds differences between replicas: nothing in a healthy store makes any.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;
use shoal_kernel::Result;

use super::digest::DigestBuckets;
use super::expire::{Taken, drop_taken};
use super::{Store, lock};

impl Store {
    /// Has winning rows and tombstones vanish behind the log's back, as if they had never come here, and says how many: those that
    /// the caller picks by their number. Durable. Only tests have a use for it.
    ///
    /// # Errors
    /// As of [`Store::flush`]; [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read.
    pub fn lose(&self, picks: &dyn Fn(u64) -> bool) -> Result<u64> {
        self.flush()?;
        let _flushing = lock(&self.flushing);
        let mut compaction = lock(&self.compacting);
        compaction.give_up();
        let maintenance = lock(&self.maintenance);
        let writer = lock(&self.writer);
        writer.check_sound()?;
        let mut state = lock(&self.state).clone();
        state.check_whole()?;
        let (mut number, mut taken) = (0, BTreeMap::new());
        for (id, view) in state.segments.iter().filter(|(_, view)| !view.history) {
            let mut rows = RoaringBitmap::new();
            let mut tally = self.tally(&state.layout, DigestBuckets::default());
            for page in view.pages() {
                let (keys, versions) = view.segment.read_key_columns(&state.layout, page)?;
                let alive = view.segment.page_rows(page).enumerate().filter(|(_, row)| !view.dead.contains(*row));
                for (at, row) in alive {
                    number += 1;
                    if picks(number) {
                        tally.add_key(keys.get(at), versions[at], view.segment.tombstones().contains(row));
                        rows.insert(row);
                    }
                }
            }
            taken.insert(*id, Taken { rows, digest: tally.finish(), whole: false });
        }
        drop_taken(&mut state, &taken);
        self.manifest_of(&state, &writer.deaths, maintenance.next_segment)?.write(&self.disk, &self.dir)?;
        drop_taken(&mut lock(&self.state), &taken);
        Ok(taken.values().map(|taken| taken.rows.len()).sum())
    }
}
