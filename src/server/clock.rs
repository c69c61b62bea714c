//! The clock, and the number of open descriptors.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Reads the monotonic time since the start. A test may move it forward.
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

    /// Returns the time since 1970. The wall clock may be set at any time.
    pub fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Returns the time since 1970 at which this clock started, by the wall clock as it is now.
    pub fn epoch(&self) -> Duration {
        self.wall().saturating_sub(self.now())
    }
}

/// Returns the number of open descriptors. Since Linux 6.2 the size of `/proc/self/fd` says it (proc(5)); older kernels need
/// the entries to be counted.
pub(super) fn descriptors() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    if size > 0 { size } else { fs::read_dir("/proc/self/fd").map_or(0, |each| each.count() as u64) }
}
