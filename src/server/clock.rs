//! What time it is.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time since the start, which a test may move forward.
pub struct Clock {
    pub start: Instant,
    pub ahead: Duration,
}

impl Clock {
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
