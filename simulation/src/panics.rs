//! Panics of the code under test. Supervision survives them, so they would pass unseen; each is a bug all the same.

use std::cell::RefCell;
use std::io::Write as _;
use std::panic::PanicHookInfo;

/// The message of panics that a scenario makes on purpose.
pub const PLANNED: &str = "as planned";

/// Kept per run; the first tell the story.
const PANICS_MAX: usize = 20;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes a panic of a simulating thread instead of printing it.
pub fn note(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("without a message");
    let place = info.location().map(|place| {
        let file = place.file().rsplit('/').next().unwrap_or_default();
        format!("{file}:{}", place.line())
    });
    let text = format!("{} at {}", message, place.unwrap_or_default());
    if !crate::entropy::is_simulated() {
        let _ = writeln!(std::io::stderr(), "panicked: {text}");
        return;
    }
    let _ = PANICS.try_with(|panics| {
        if let Ok(mut panics) = panics.try_borrow_mut()
            && panics.len() < PANICS_MAX
        {
            panics.push(text);
        }
    });
}

/// The calling thread's panics so far; they are forgotten.
pub fn take() -> Vec<String> {
    PANICS.take()
}
