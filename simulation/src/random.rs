//! Independent streams of random numbers.
//!
//! Every choice is a pure function of (seed, purpose, entity, ordinal). Taking one fault or one operation away therefore
//! shifts no other choice, which is what makes a failing run shrink.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The number at one place of one stream.
pub fn draw(seed: u64, purpose: &str, entity: u64, ordinal: u64) -> u64 {
    let purpose = xxh3_64_with_seed(purpose.as_bytes(), seed);
    let mut place = [0u8; 16];
    place[..8].copy_from_slice(&entity.to_le_bytes());
    place[8..].copy_from_slice(&ordinal.to_le_bytes());
    xxh3_64_with_seed(&place, purpose)
}

/// A stream: the numbers of one purpose and entity, one after the other.
#[derive(Debug, Clone)]
pub struct Stream {
    seed: u64,
    purpose: &'static str,
    entity: u64,
    ordinal: u64,
}

impl Stream {
    /// The stream's beginning.
    pub fn new(seed: u64, purpose: &'static str, entity: u64) -> Self {
        Self { seed, purpose, entity, ordinal: 0 }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        let number = draw(self.seed, self.purpose, self.entity, self.ordinal);
        self.ordinal += 1;
        number
    }

    /// A number below `bound`; 0 for a bound of 0. The bias of the multiplication is below 2^-32 for the bounds in use here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True in `permille` of 1000 draws.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// One of the choices; `None` of none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let place = self.below(choices.len() as u64);
        choices.get(usize::try_from(place).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_do_not_move_each_other() {
        let numbers = |purpose, entity| {
            let mut stream = Stream::new(7, purpose, entity);
            (0..4).map(|_| stream.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(numbers("loss", 1), numbers("loss", 1));
        assert_ne!(numbers("loss", 1), numbers("loss", 2));
        assert_ne!(numbers("loss", 1), numbers("delay", 1));
    }

    #[test]
    fn bounds_hold() {
        let mut stream = Stream::new(1, "bounds", 0);
        assert_eq!(stream.below(0), 0);
        let drawn: Vec<u64> = (0..1000).map(|_| stream.between(3, 5)).collect();
        assert!((3..=5).all(|n| drawn.contains(&n)) && drawn.iter().all(|n| (3..=5).contains(n)));
        assert!(!stream.chance(0) && stream.chance(1000));
    }
}
