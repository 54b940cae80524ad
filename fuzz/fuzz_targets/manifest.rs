//! A manifest, and the store that it describes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    shoal_storage::fuzzing::manifest(bytes);
});
