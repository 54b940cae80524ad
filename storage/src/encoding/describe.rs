//! Which form a page has, in words.

use shoal_kernel::Result;

use super::{
    Input, TAG_BITS, TAG_BYTES, TAG_CODES, TAG_DECIMALS, TAG_FIXED, TAG_IPC, TAG_NESTED, TAG_NULLS, TAG_WORDS, blob,
    malformed, open_page, words,
};

/// What kind of page these are the bytes of, and how it is packed. Looks at the outline only.
///
/// # Errors
/// [`shoal_kernel::ErrorCode::Corruption`] if it has none.
pub(crate) fn describe(page: &[u8], rows: usize) -> Result<String> {
    let (tag, nulls, mut input) = open_page(page, rows)?;
    let numbers = |input: &mut Input<'_>| words::describe(input);
    let form = match tag {
        TAG_WORDS => numbers(&mut input)?,
        TAG_BITS => "bits".to_owned(),
        // The bytes follow numbers whose end only reading them tells.
        TAG_BYTES => format!("strings, lengths {}", numbers(&mut input)?),
        TAG_IPC => format!("arrow ipc, {}", blob::describe(&mut input)?),
        TAG_FIXED => format!("fixed size, {}", blob::describe(&mut input)?),
        TAG_CODES => format!("codes, {}", numbers(&mut input)?),
        TAG_DECIMALS => {
            let power = input.u8()?;
            format!("decimals of 10^-{power}, {}", numbers(&mut input)?)
        }
        TAG_NESTED => "nested, shredded".to_owned(),
        TAG_NULLS => "only nulls".to_owned(),
        other => return Err(malformed(format_args!("unknown kind {other}"))),
    };
    Ok(if nulls.is_some() { format!("{form}, validity") } else { form })
}
