//! A monotonic timestamp in 8 bytes, for the records that every connection has.

use std::num::NonZeroU64;
use std::time::Duration;

/// The time since the start of the server, in nanoseconds.
///
/// `Option<Timestamp>` takes 8 bytes, where `Option<Duration>` takes 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(NonZeroU64);

impl From<Duration> for Timestamp {
    /// Converts a time since the start, up to 584 years.
    fn from(now: Duration) -> Timestamp {
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(NonZeroU64::MIN.saturating_add(nanoseconds))
    }
}

impl Timestamp {
    /// Returns the time since the start.
    pub fn get(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_to_timestamp_and_back_is_lossless() {
        for nanoseconds in [0, 1, 999_999_999, 1_000_000_000, 123_456_789_012_345_678] {
            let time = Duration::from_nanos(nanoseconds);
            assert_eq!(Timestamp::from(time).get(), time);
        }
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
    }
}
