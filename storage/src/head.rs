//! The first bytes of every file: what it is, and in which format.

use shoal_kernel::{Error, ErrorCode, Result};

/// Magic (8), version (4), complement of the version (4).
pub(crate) const HEAD_BYTES: usize = 16;

/// The head of a file of this kind and version.
pub(crate) fn head(magic: &[u8; 8], version: u32) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(!version).to_le_bytes());
    bytes
}

/// Checks a head.
///
/// # Errors
/// [`ErrorCode::Corruption`] if it is none of this kind; [`ErrorCode::IncompatibleVersion`] if it is whole and of another
/// version. A version stands there twice, so that a flipped bit is not taken for a file of a newer build, which nobody may
/// touch: damage can be healed.
pub(crate) fn check(bytes: &[u8], magic: &[u8; 8], version: u32) -> Result<()> {
    check_from(bytes, magic, version, version).map(|_| ())
}

/// The same for a kind of which versions from the oldest to the newest can be read; gives the one that it is.
///
/// # Errors
/// As of [`check`].
pub(crate) fn check_from(bytes: &[u8], magic: &[u8; 8], oldest: u32, newest: u32) -> Result<u32> {
    let corrupt =
        || Error::new(ErrorCode::Corruption, "this is not the file that its name says, or its head is damaged");
    let rest = bytes.strip_prefix(magic).ok_or_else(corrupt)?;
    let (found, rest) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
    let (complement, _) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
    let found = u32::from_le_bytes(*found);
    if u32::from_le_bytes(*complement) != !found {
        return Err(corrupt());
    }
    if !(oldest..=newest).contains(&found) {
        let known = if oldest == newest { format!("{newest}") } else { format!("{oldest} to {newest}") };
        let message = format!("its format {found} is not known to this build (it knows {known})");
        return Err(Error::new(ErrorCode::IncompatibleVersion, message));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_damage_and_another_version_is_not() {
        let magic = b"SHOALXYZ";
        assert_eq!(check(&head(magic, 3), magic, 3), Ok(()));
        assert_eq!(check(&head(magic, 4), magic, 3).unwrap_err().code(), ErrorCode::IncompatibleVersion);
        assert_eq!(check_from(&head(magic, 3), magic, 3, 4), Ok(3));
        assert_eq!(check_from(&head(magic, 4), magic, 3, 4), Ok(4));
        assert_eq!(check_from(&head(magic, 2), magic, 3, 4).unwrap_err().code(), ErrorCode::IncompatibleVersion);
        for bit in 0..HEAD_BYTES * 8 {
            let mut bytes = head(magic, 3);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&bytes, magic, 3).unwrap_err().code(), ErrorCode::Corruption, "bit {bit}");
        }
        assert!(check(&head(magic, 3)[..15], magic, 3).is_err());
    }
}
