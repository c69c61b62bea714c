//! What the loop asks the operating system for, beside sockets: the time, and how much of what is scarce is used.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time since the start, which a test may move forward.
pub(super) struct Clock {
    start: Instant,
    pub ahead: Duration,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { start: Instant::now(), ahead: Duration::ZERO }
    }

    pub fn now(&self) -> Duration {
        self.start.elapsed() + self.ahead
    }

    /// What time it is, since 1970. Whoever may set the clock on the wall may set it at any time.
    pub fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// What time it was, since 1970, when this clock began, by what the clock on the wall says now.
    pub fn epoch(&self) -> Duration {
        self.wall().saturating_sub(self.now())
    }
}

/// How many descriptors are open. Since Linux 6.2 that is the size of this directory (proc(5)), before it takes a look at
/// each.
pub(super) fn descriptors() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    if size > 0 { size } else { fs::read_dir("/proc/self/fd").map_or(0, |each| each.count() as u64) }
}
