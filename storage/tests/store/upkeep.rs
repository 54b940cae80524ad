//! Power goes at every operation of a flush, a merge, an optimisation and a replaced blob, and at random moments of all of
//! them: what was acknowledged is there, nothing else, no file is left over, and an examination finds nothing wrong.

use shoal_kernel::{Hlc, NodeId, Result, Version};
use shoal_storage::{Severity, Store};

use crate::crash::{Outcome, check, try_open};
use crate::disk::{Loss, MemoryDisk};
use crate::examine::{examine, findings};
use crate::fixture::*;
use crate::model::{Change, Model, write};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Rows in segments and in the log, dead ones among them, and tombstones.
fn prepared() -> (MemoryDisk, Outcome) {
    let disk = MemoryDisk::default();
    let (store, _) = try_open(&disk).unwrap();
    let mut acknowledged = Model::default();
    for round in 0..5i64 {
        let version = |part: u32| Version::new(Hlc(10 + round as u64), NodeId(1), part * 1000);
        let put = Change::Put((0..30).map(|at| (at * (round + 1), round * 100 + at)).collect());
        for (part, change) in [put, Change::Delete(vec![round, round * 7])].iter().enumerate() {
            let write = write(&mut acknowledged, version(part as u32), change);
            store.commit(vec![write], 0).unwrap().remove(0).unwrap();
        }
        if round < 4 {
            store.flush().unwrap();
        }
    }
    store.set_meta(vec![1, 2, 3]).unwrap();
    drop(store);
    (disk.restart(Loss::Everything), Outcome { acknowledged, meta: vec![vec![1, 2, 3]], ..Outcome::default() })
}

/// The machine comes back with what is left: examined, opened, and examined again.
fn survives(disk: &MemoryDisk, outcome: &Outcome, what: &str) {
    let before = disk.content();
    let found = examine(disk);
    assert_eq!(disk.content(), before, "{what}: an examination changes nothing");
    let (store, in_doubt) = check(disk, outcome, what);
    let is_damage = |finding: &&shoal_storage::Finding| finding.severity == Severity::Damage;
    assert_eq!(found.findings.iter().filter(is_damage).count(), usize::from(in_doubt), "{what}: {:?}", found.findings);
    drop(store);
    assert_eq!(findings(disk), [], "{what}: after the start");
}

fn crash_everywhere(name: &str, work: impl Fn(&Store) -> Result<()>) -> u64 {
    let (base, mut outcome) = prepared();
    outcome.meta.push(vec![9]);
    let mut crashes = 0;
    for operation in 1.. {
        let disk = base.restart(Loss::Nothing);
        let (store, _) = try_open(&disk).unwrap();
        disk.cut_power_at(disk.operations() + operation);
        let finished = work(&store).is_ok();
        // What is done in vain beside the work, such as removing files, must not hide that power went.
        let finished = finished && disk.shared().sync_dir(std::path::Path::new(DIR)).is_ok();
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(operation * 2), Loss::Torn(operation * 2 + 1)] {
            survives(&disk.restart(loss), &outcome, &format!("{name} cut at {operation}, {loss:?}"));
            crashes += 1;
        }
        if finished {
            break;
        }
    }
    crashes
}

#[test]
fn power_cut_at_every_operation_of_upkeep() {
    let flush = crash_everywhere("flush", |store| store.flush().map(drop));
    let compact = crash_everywhere("compact", |store| {
        while store.compact()? {}
        Ok(())
    });
    let optimize = crash_everywhere("optimize", |store| store.optimize(&|| true).map(drop));
    let meta = crash_everywhere("meta", |store| store.set_meta(vec![9]));
    assert!(flush > 60 && compact > 60 && optimize > 60 && meta > 20, "{flush} {compact} {optimize} {meta}");
    assert!(flush + compact + optimize + meta > 400, "{flush} {compact} {optimize} {meta}");
}

/// Anything in any order, until the power goes.
fn random_life(disk: &MemoryDisk, random: &mut Random) -> Outcome {
    let mut outcome = Outcome { meta: vec![Vec::new()], ..Outcome::default() };
    let Ok((store, _)) = try_open(disk) else { return outcome };
    for step in 0..40u64 {
        let done = match random.below(8) {
            0 => store.flush().is_ok(),
            1 => store.compact().is_ok(),
            2 => store.optimize(&|| true).is_ok(),
            3 => {
                outcome.meta.push(vec![step as u8; 3]);
                let done = store.set_meta(vec![step as u8; 3]).is_ok();
                if done {
                    outcome.meta = outcome.meta.split_off(outcome.meta.len() - 1);
                }
                done
            }
            _ => {
                let version = Version::new(Hlc(10 + random.below(20)), NodeId(step as u32 + 1), 0);
                let change = match random.below(4) {
                    0 => Change::Delete((0..5).map(|_| random.below(50) as i64).collect()),
                    _ => Change::Put((0..12).map(|_| (random.below(50) as i64, random.below(900) as i64)).collect()),
                };
                let mut next = outcome.acknowledged.clone();
                let committed = store.commit(vec![write(&mut next, version, &change)], 0);
                let done = committed.is_ok_and(|results| results.iter().all(Result::is_ok));
                match done {
                    true => outcome.acknowledged = next,
                    false => outcome.in_flight = Some(next),
                }
                done
            }
        };
        if !done {
            return outcome;
        }
    }
    outcome.finished = true;
    outcome
}

#[test]
fn power_cut_at_random_moments_of_everything() {
    let mut cut = 0;
    for seed in 0..500 {
        let mut random = Random(seed);
        let disk = MemoryDisk::default();
        disk.cut_power_at(1 + random.below(400));
        let outcome = random_life(&disk, &mut random);
        cut += u64::from(!outcome.finished);
        let loss = match random.below(3) {
            0 => Loss::Everything,
            1 => Loss::Nothing,
            _ => Loss::Torn(seed),
        };
        survives(&disk.restart(loss), &outcome, &format!("seed {seed}, {loss:?}"));
    }
    assert!(cut > 400, "{cut}");
}
