//! Split-block Bloom filter: whether a key may be in a row group, with one cache line touched per question.
//!
//! Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007), in the form that Parquet gave it.

use xxhash_rust::xxh3::xxh3_64;

const WORDS: usize = 8;
const BLOCK_BYTES: usize = WORDS * 4;
/// About one wrong yes in a hundred.
const BITS_PER_KEY: usize = 10;
const SALT: [u32; WORDS] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// The filter of one row group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bloom {
    blocks: Vec<[u32; WORDS]>,
}

impl Bloom {
    /// A filter of these keys.
    pub(crate) fn of(hashes: &[u64]) -> Self {
        let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK_BYTES * 8).max(1);
        let mut bloom = Self { blocks: vec![[0; WORDS]; blocks] };
        for &hash in hashes {
            let block = bloom.block(hash);
            for (word, bit) in bloom.blocks[block].iter_mut().zip(mask(hash)) {
                *word |= bit;
            }
        }
        bloom
    }

    /// The hash of a key, as the filter wants it. Part of the file format.
    pub(crate) fn hash(key: &[u8]) -> u64 {
        xxh3_64(key)
    }

    /// False only if the key was not among those of the filter.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        self.blocks[self.block(hash)].iter().zip(mask(hash)).all(|(word, bit)| word & bit != 0)
    }

    /// Blocks of 32 bytes.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, hash: u64) -> usize {
        (((hash >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `None` if these are not the bytes of a filter.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let block = |bytes: &[u8]| std::array::from_fn(|at| word(&bytes[at * 4..]));
        Some(Self { blocks: bytes.chunks_exact(BLOCK_BYTES).map(block).collect() })
    }
}

fn mask(hash: u64) -> [u32; WORDS] {
    SALT.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_no_key_and_rarely_invents_one() {
        let hash = |key: u32| Bloom::hash(&key.to_be_bytes());
        let hashes: Vec<u64> = (0..10_000).map(hash).collect();
        let bloom = Bloom::from_bytes(&Bloom::of(&hashes).to_bytes()).unwrap();
        assert!(hashes.iter().all(|&hash| bloom.may_hold(hash)));
        let invented = (10_000..20_000).filter(|&key| bloom.may_hold(hash(key))).count();
        assert!(invented < 300, "{invented}");
        assert_eq!(Bloom::from_bytes(&[0; 33]), None);
    }
}
