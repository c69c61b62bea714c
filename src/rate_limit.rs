//! How much one connection may send: a token bucket, and what becomes of those who ignore it.

use std::time::Duration;

use crate::config::{
    RATE_BLOCK_BYTES, RATE_BURST_SECONDS, RATE_DELIVERIES_PER_CREDIT, RATE_OFFENCE_MAX, RATE_PAUSE,
    RATE_TOLD_EVERY,
};
use crate::timestamp::Timestamp;

/// Returns the credits that a message of this size costs: one for every [`RATE_BLOCK_BYTES`] begun, at least one.
pub fn blocks(bytes: usize) -> usize {
    bytes.div_ceil(RATE_BLOCK_BYTES).max(1)
}

/// Returns the credits that telling a text of this size to this many peers costs: one for every
/// [`RATE_DELIVERIES_PER_CREDIT`] deliveries begun, times the blocks of the text.
pub fn deliveries(peers: usize, bytes: usize) -> usize {
    peers.div_ceil(RATE_DELIVERIES_PER_CREDIT) * blocks(bytes)
}

/// What `--max-rate` means: a token every so often, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    token: Duration,
    burst: u32,
}

impl Rate {
    /// So many tokens a second; 0 is no limit.
    pub fn per_second(tokens: u32) -> Option<Rate> {
        Some(Rate {
            token: Duration::from_secs(1).checked_div(tokens)?,
            burst: tokens.saturating_mul(RATE_BURST_SECONDS),
        })
    }
}

/// The tokens of one connection.
///
/// The bucket is kept as one number, the time when it will be full again (`None`: nothing was ever paid). A message
/// moves that time by its price, and is too much if it would come to lie further ahead than an empty bucket takes to
/// fill.
#[derive(Debug, Default)]
pub struct Bucket {
    full_at: Option<Timestamp>,
    offence: Option<Box<Offence>>,
}

#[derive(Debug)]
struct Offence {
    began: Duration,
    last: Duration,
    told: Duration,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Handle it.
    Pass,
    /// Drop it, and tell the sender or not.
    Drop {
        /// At most once a second.
        tell: bool,
    },
    /// Drop it and close the connection: it went on for too long.
    Close,
}

impl Bucket {
    /// Pays for a message of which so many tokens are paid already. What is dearer than a full bucket costs a
    /// full bucket, else it could never be said.
    pub fn pay(&mut self, rate: Option<Rate>, tokens: usize, paid: usize, now: Duration) -> Verdict {
        let Some(rate) = rate else {
            return Verdict::Pass;
        };
        let cap = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX).min(rate.burst);
        let tokens = cap(tokens).saturating_sub(cap(paid));
        let full_at = self.full_at.map_or(now, |at| at.get().max(now)) + rate.token * tokens;
        if full_at > now + rate.token * rate.burst {
            return self.offend(now);
        }
        self.full_at = Some(full_at.into());
        Verdict::Pass
    }

    /// A message was too much, for whatever reason. An offence lasts until its sender pauses.
    pub fn offend(&mut self, now: Duration) -> Verdict {
        let offence = match &mut self.offence {
            Some(offence) if now - offence.last < RATE_PAUSE => offence,
            _ => {
                self.offence = Some(Box::new(Offence { began: now, last: now, told: now }));
                return Verdict::Drop { tell: true };
            }
        };
        offence.last = now;
        if now - offence.began >= RATE_OFFENCE_MAX {
            return Verdict::Close;
        }
        let tell = now - offence.told >= RATE_TOLD_EVERY;
        if tell {
            offence.told = now;
        }
        Verdict::Drop { tell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TELL: Verdict = Verdict::Drop { tell: true };
    const QUIET: Verdict = Verdict::Drop { tell: false };

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
            assert_eq!(deliveries(peers, bytes), credits, "{bytes} bytes to {peers}");
        }
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (rate, mut bucket) = (Rate::per_second(10), Bucket::default());
        for _ in 0..100 {
            assert_eq!(bucket.pay(rate, 1, 0, ms(0)), Verdict::Pass);
        }
        assert_eq!(bucket.pay(rate, 1, 0, ms(0)), TELL);
        assert_eq!(bucket.pay(rate, 1, 0, ms(99)), QUIET);
        assert_eq!(bucket.pay(rate, 1, 0, ms(100)), Verdict::Pass);
        assert_eq!(bucket.pay(rate, 1, 0, ms(100)), QUIET);
        // Full again after ten seconds, and no fuller after a thousand.
        for _ in 0..100 {
            assert_eq!(bucket.pay(rate, 1, 0, ms(1_000_000)), Verdict::Pass);
        }
        assert_eq!(bucket.pay(rate, 1, 0, ms(1_000_000)), TELL);
    }

    #[test]
    fn the_dearest_message_can_be_said() {
        let (rate, mut bucket) = (Rate::per_second(1), Bucket::default());
        assert_eq!(bucket.pay(rate, 64, 0, ms(0)), Verdict::Pass);
        assert_eq!(bucket.pay(rate, 1, 0, ms(0)), TELL);
        assert_eq!(bucket.pay(rate, 4, 0, ms(10_000)), Verdict::Pass);
        assert_eq!(bucket.pay(rate, 64, 4, ms(10_000)), Verdict::Pass);
        assert_eq!(bucket.pay(rate, 1, 0, ms(10_000)), TELL);
    }

    #[test]
    fn told_once_a_second_and_closed_after_five() {
        let (rate, mut bucket) = (Rate::per_second(1), Bucket::default());
        assert_eq!(bucket.pay(rate, 10, 0, ms(0)), Verdict::Pass);
        let verdicts: Vec<_> = (0..11).map(|i| bucket.pay(rate, 10, 0, ms(i * 500))).collect();
        assert_eq!(verdicts[..4], [TELL, QUIET, TELL, QUIET]);
        assert_eq!(verdicts[8..], [TELL, QUIET, Verdict::Close]);
    }

    #[test]
    fn a_pause_ends_the_offence() {
        let mut bucket = Bucket::default();
        for i in 0..100 {
            assert_eq!(bucket.offend(ms(i * 2000)), TELL);
        }
    }

    #[test]
    fn no_limit() {
        let mut bucket = Bucket::default();
        assert!((0..10_000).all(|_| bucket.pay(Rate::per_second(0), 64, 0, ms(0)) == Verdict::Pass));
    }
}
