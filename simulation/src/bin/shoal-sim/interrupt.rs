//! Ctrl-C: what runs is brought to its end, and what was learnt is told. A second one ends at once.

use std::io::{self, Write};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// As shells report a program that ended by an interrupt.
const INTERRUPTED: i32 = 130;

/// A flag that an interrupt sets.
pub fn flag() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if flag.swap(true, Ordering::Relaxed) {
                    exit(INTERRUPTED);
                }
                let _ = writeln!(io::stderr(), "\nshoal-sim: ending after the runs under way; once more ends at once");
            }
        });
    })?;
    Ok(interrupted)
}
