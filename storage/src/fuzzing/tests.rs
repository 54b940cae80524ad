//! The fuzzers' entries on a few thousand inputs that are the same every time: they are alive, and nothing panics.

use super::{Sample, log, manifest, page, samples, segment};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }

    /// A few of the changes that a fuzzer makes.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(3) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at.min(bytes.len()), self.below(256) as u8),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => {
                    let number = [0, 1, u32::MAX, 1 << 31, 0x7fff_ffff, 1 << 20][self.below(6)];
                    bytes.iter_mut().skip(at).zip(number.to_le_bytes()).for_each(|(byte, new)| *byte = new);
                }
                4 => {
                    let part = bytes[at..(at + self.below(40)).min(bytes.len())].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, part);
                }
                5 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.below(8)),
            }
        }
    }
}

fn drive(reader: &str, read: fn(&[u8]) -> bool, cases: u64) {
    let samples: Vec<Sample> = samples().into_iter().filter(|sample| sample.reader == reader).collect();
    let taken = samples.iter().filter(|sample| read(&sample.bytes)).count();
    assert!(taken * 2 > samples.len(), "{reader}: only {taken} of {} samples were taken", samples.len());
    let mut random = Random(7);
    let mut taken = 0;
    for case in 0..cases {
        let mut bytes = samples[case as usize % samples.len()].bytes.clone();
        random.mutate(&mut bytes);
        taken += u64::from(read(&bytes));
    }
    // The others are refused: if hardly any is taken, nothing behind the checksums is tested.
    assert!(taken * 10 > cases, "{reader}: only {taken} of {cases} were taken");
}

#[test]
fn segments_that_nobody_wrote() {
    drive("segment", segment, 400);
}

#[test]
fn logs_that_nobody_wrote() {
    drive("log", log, 400);
}

#[test]
fn manifests_that_nobody_wrote() {
    drive("manifest", manifest, 700);
}

#[test]
fn pages_that_nobody_wrote() {
    drive("page", page, 10_000);
}
