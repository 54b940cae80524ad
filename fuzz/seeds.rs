//! Writes a corpus of files that a store wrote: `corpus/<reader>/<number>`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let Some(package) = std::env::var_os("CARGO_MANIFEST_DIR") else {
        return Err(std::io::Error::other("call this by `cargo run`, which says where it is"));
    };
    let corpus = Path::new(&package).join("corpus");
    for (number, sample) in shoal_storage::fuzzing::samples().into_iter().enumerate() {
        let dir = corpus.join(sample.reader);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("seed-{number}")), sample.bytes)?;
    }
    Ok(())
}
