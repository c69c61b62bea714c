//! A moment in eight bytes, for what is kept for every connection.

use std::num::NonZeroU64;
use std::time::Duration;

/// The time since the start, in nanoseconds. A `Duration` takes sixteen bytes, and so would an optional one; this
/// takes eight, optional or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(NonZeroU64);

impl From<Duration> for Timestamp {
    /// Good for 584 years.
    fn from(now: Duration) -> Timestamp {
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(NonZeroU64::MIN.saturating_add(nanoseconds))
    }
}

impl Timestamp {
    /// The moment as it was put in.
    pub fn get(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out() {
        for nanoseconds in [0, 1, 999_999_999, 1_000_000_000, 123_456_789_012_345_678] {
            let moment = Duration::from_nanos(nanoseconds);
            assert_eq!(Timestamp::from(moment).get(), moment);
        }
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
    }
}
