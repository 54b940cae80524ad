//! Writes a corpus of files that a store wrote: `corpus/<reader>/<number>`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (number, sample) in shoal_storage::fuzzing::samples().into_iter().enumerate() {
        let dir = corpus.join(sample.reader);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("seed-{number}")), sample.bytes)?;
    }
    Ok(())
}
