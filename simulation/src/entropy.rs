//! Clock, randomness and waiting of the operating system, replaced on the threads that simulate.
//!
//! The functions at the end of this file have the names of libc's and stand before them in every program that links this
//! crate: the standard library, tokio and every dependency call them without knowing. On a thread that has not been
//! [`enter`]ed they hand over to the kernel. On one that has,
//!
//! - `clock_gettime` gives virtual time, so that `Instant`, tokio's timers and every library agree on it;
//! - `getrandom` and `getentropy` give a seeded stream, so that hashers and generators are the same in every run;
//! - `epoll_wait` never waits: a tokio runtime that has nothing to do asks it to wait until its next timer, which is exactly
//!   what the scheduler of hosts wants to know. It notes the time-out and ends the runtime's step.

use std::cell::Cell;
use std::task::Waker;

/// The wall clock at virtual time zero: 2026-01-01 00:00:00 UTC, in microseconds.
pub const EPOCH_MICROS: u64 = 1_767_225_600_000_000;

/// Virtual time at which the monotonic clock starts: not zero, because code may subtract from it.
const MONOTONIC_BASE_SECONDS: u64 = 1_000_000;

/// How often a runtime may look for events in one step before it counts as spinning; 61 polls of tasks lie between two.
const LOOKS_MAX: u32 = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// The runtime of the current step has work.
    Busy,
    /// It waits for its next timer, that many milliseconds from now.
    Until(u64),
    /// It waits for an event from outside.
    Forever,
}

thread_local! {
    static SIMULATED: Cell<bool> = const { Cell::new(false) };
    static NOW_MICROS: Cell<u64> = const { Cell::new(0) };
    static WALL_OFFSET_MICROS: Cell<i64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    static IDLE: Cell<Idle> = const { Cell::new(Idle::Busy) };
    static LOOKS: Cell<u32> = const { Cell::new(0) };
    static STEP: Cell<Option<Waker>> = const { Cell::new(None) };
}

/// The calling thread simulates from here to its end: its clock stands at zero, its randomness comes from the seed.
pub fn enter(seed: u64) {
    RANDOM.set(seed);
    NOW_MICROS.set(0);
    WALL_OFFSET_MICROS.set(0);
    SIMULATED.set(true);
}

/// Whether the calling thread simulates.
pub fn is_simulated() -> bool {
    SIMULATED.try_with(Cell::get).unwrap_or(false)
}

/// Moves the calling thread's clock.
pub(crate) fn set_now_micros(now: u64) {
    NOW_MICROS.set(now);
}

/// Sets by how much the wall clock of the host that runs next is off.
pub(crate) fn set_wall_offset_micros(offset: i64) {
    WALL_OFFSET_MICROS.set(offset);
}

/// Replaces the state of the calling thread's random stream: each host has its own.
pub(crate) fn swap_random(state: u64) -> u64 {
    RANDOM.replace(state)
}

/// Begins a step of a runtime; `waker` ends it as soon as the runtime has nothing more to do.
pub(crate) fn begin_step(waker: Waker) {
    IDLE.set(Idle::Busy);
    LOOKS.set(0);
    STEP.set(Some(waker));
}

/// Whether the runtime has run out of work; if so, milliseconds to its next timer, if it has one.
pub(crate) fn step_ended() -> Option<Option<u64>> {
    match IDLE.get() {
        Idle::Busy => None,
        Idle::Until(millis) => Some(Some(millis)),
        Idle::Forever => Some(None),
    }
}

/// CPU time of the process in microseconds, also on a simulating thread: for reports of speed, never for decisions.
pub fn cpu_micros() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the system call writes one timespec, and there is one.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}

/// Runs the program again with address randomisation off, unless it is off already: some libraries seed hashers with
/// addresses. Returns if it is off, or cannot be turned off.
pub fn without_address_randomisation() {
    use std::os::unix::process::CommandExt;
    // SAFETY: personality reads and writes a number of this process; 0xffff_ffff only asks.
    let current = unsafe { libc::personality(0xffff_ffff) };
    let wanted = libc::ADDR_NO_RANDOMIZE;
    if current < 0 || current & wanted != 0 {
        return;
    }
    // SAFETY: as above.
    if unsafe { libc::personality((current | wanted) as libc::c_ulong) } < 0 {
        return;
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    if let Ok(program) = std::env::current_exe() {
        let mut command = std::process::Command::new(program);
        if let Some(name) = name {
            command.arg0(name);
        }
        // Comes back only on failure; the run then goes on as it is.
        let _ = command.args(arguments).exec();
    }
}

fn next_random(state: &Cell<u64>) -> u64 {
    // SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
    let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    state.set(seed);
    let mut mixed = seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Fills the buffer from the thread's stream; false if the thread has none.
///
/// # Safety
/// `buffer` is valid for writes of `len` bytes.
unsafe fn fill_seeded(buffer: *mut u8, len: usize) -> bool {
    if !is_simulated() {
        return false;
    }
    RANDOM.with(|state| {
        let mut filled = 0;
        while filled < len {
            let bytes = next_random(state).to_ne_bytes();
            let part = bytes.len().min(len - filled);
            // SAFETY: filled + part <= len, and the caller vouches for len bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.add(filled), part) };
            filled += part;
        }
    });
    true
}

/// Stands before libc's function of that name.
///
/// # Safety
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, len: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    // SAFETY: the caller gives a buffer of len bytes.
    if unsafe { fill_seeded(buffer.cast(), len) } {
        return len as libc::ssize_t;
    }
    // SAFETY: arguments are handed on as they came.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as libc::ssize_t }
}

/// Stands before libc's function of that name.
///
/// # Safety
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getentropy(buffer: *mut libc::c_void, len: libc::size_t) -> libc::c_int {
    // SAFETY: the caller gives a buffer of len bytes.
    let filled = unsafe { getrandom(buffer, len, 0) };
    if filled == len as libc::ssize_t { 0 } else { -1 }
}

/// Stands before libc's function of that name.
///
/// # Safety
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !is_simulated() {
        // SAFETY: arguments are handed on as they came.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let now = NOW_MICROS.get();
    let micros = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => {
            EPOCH_MICROS.saturating_add(now).saturating_add_signed(WALL_OFFSET_MICROS.get())
        }
        // CPU time too: code takes no virtual time.
        _ => now + MONOTONIC_BASE_SECONDS * 1_000_000,
    };
    // SAFETY: the caller gives one timespec to write to.
    unsafe {
        (*time).tv_sec = (micros / 1_000_000) as libc::time_t;
        (*time).tv_nsec = (micros % 1_000_000 * 1_000) as libc::c_long;
    }
    0
}

/// Stands before libc's function of that name.
///
/// # Safety
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    poll: libc::c_int,
    events: *mut libc::epoll_event,
    events_max: libc::c_int,
    timeout_ms: libc::c_int,
) -> libc::c_int {
    if !is_simulated() {
        // SAFETY: arguments are handed on as they came; no signal mask.
        return unsafe {
            libc::syscall(libc::SYS_epoll_pwait, poll, events, events_max, timeout_ms, std::ptr::null::<u8>(), 8usize)
                as libc::c_int
        };
    }
    // A runtime that keeps itself busy looks here in passing. One that never stops waits for time to pass, which it does
    // only between steps: it is given a millisecond.
    let looks = LOOKS.get() + 1;
    LOOKS.set(looks);
    let timeout_ms = if timeout_ms == 0 && looks >= LOOKS_MAX { 1 } else { timeout_ms };
    if timeout_ms != 0 {
        IDLE.set(u64::try_from(timeout_ms).map_or(Idle::Forever, Idle::Until));
        if let Some(waker) = STEP.take() {
            waker.wake();
        }
    }
    0
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "what is replaced is what is tested")]
mod tests {
    use std::collections::HashMap;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    fn on_simulated_thread<T: Send + 'static>(seed: u64, run: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            enter(seed);
            run()
        });
        thread.join().unwrap()
    }

    #[test]
    fn time_stands_still_until_it_is_moved() {
        on_simulated_thread(1, || {
            let start = Instant::now();
            assert_eq!(start.elapsed(), Duration::ZERO);
            set_now_micros(1_500);
            assert_eq!(start.elapsed(), Duration::from_micros(1_500));
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert_eq!(wall, Duration::from_micros(EPOCH_MICROS + 1_500));
        });
        assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap() != Duration::from_micros(EPOCH_MICROS));
    }

    #[test]
    fn every_source_of_randomness_follows_the_seed() {
        let drawn = |seed| {
            on_simulated_thread(seed, || {
                let order: Vec<u32> = (0..64u32).map(|n| (n, ())).collect::<HashMap<_, _>>().into_keys().collect();
                let mut raw = [0u8; 24];
                // SAFETY: the buffer is as long as said.
                unsafe { libc::getrandom(raw.as_mut_ptr().cast(), raw.len(), 0) };
                (order, raw, getrandom::u64().unwrap())
            })
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }
}
