//! Offer/answer metrics: success rate and latency.
//!
//! A *handshake* is an offer and its answer in this module and in the metrics, not the opening handshake of WebSocket or of
//! TLS. An offer is tracked from its delivery to a peer until an answer, an error, a departure or
//! [`OFFER_TRACKED_TIME_MAX`]. Between two peers one offer is pending at a time: a newer one replaces it, in
//! either direction.

use std::collections::VecDeque;
use std::time::Duration;

use super::Slot;
use crate::limits::{OFFER_TRACKED_TIME_MAX, OFFERS_TRACKED_MAX};
use crate::metrics::Histogram;
use crate::named_enum::named_enum;
use crate::timestamp::Timestamp;

named_enum! {
    /// The result of an offer.
    pub enum Outcome {
        /// An answer to it was forwarded.
        Answered = "answered",
        /// No answer arrived in time.
        Unanswered = "unanswered",
        /// The offer or its answer was rejected.
        Rejected = "refused",
        /// One of the two peers left.
        Left = "left",
    }
}

/// An offer that was delivered and not answered yet.
struct PendingOffer {
    from: Slot,
    to: Slot,
    delivered_at: Timestamp,
}

impl PendingOffer {
    fn is_between(&self, a: Slot, b: Slot) -> bool {
        (self.from, self.to) == (a, b) || (self.from, self.to) == (b, a)
    }

    fn is_expired(&self, now: Duration) -> bool {
        self.delivered_at.get() + OFFER_TRACKED_TIME_MAX <= now
    }
}

#[derive(Default)]
pub struct Handshakes {
    /// Oldest first, at most [`OFFERS_TRACKED_MAX`]. Searched linearly.
    pending: VecDeque<PendingOffer>,
    /// Finished offers, by [`Outcome`].
    outcome_counts: [u64; Outcome::ALL.len()],
    /// Time from the delivery of an offer to its answer.
    answer_times: Histogram,
}

impl Handshakes {
    /// Returns the number of offers by outcome, and the answer times.
    pub fn counts(&self, now: Duration) -> (Vec<(&'static str, u64)>, Histogram) {
        let mut counts = self.outcome_counts;
        counts[Outcome::Unanswered as usize] += self.expired_count(now) as u64;
        let counts_by_name = Outcome::ALL.map(Outcome::name).into_iter().zip(counts).collect();
        (counts_by_name, self.answer_times.clone())
    }

    /// Returns all peers of pending offers.
    pub fn peers(&self) -> impl Iterator<Item = Slot> {
        self.pending.iter().flat_map(|offer| [offer.from, offer.to])
    }

    /// Counts offers with this outcome.
    pub fn count(&mut self, outcome: Outcome, number: usize) {
        self.outcome_counts[outcome as usize] += number as u64;
    }

    /// Starts to track an offer that was delivered.
    ///
    /// It is not tracked if [`OFFERS_TRACKED_MAX`] others are pending.
    pub fn on_offer(&mut self, from: Slot, to: Slot, now: Duration) {
        self.remove_expired(now);
        self.pending.retain(|offer| !offer.is_between(from, to));
        if self.pending.len() < OFFERS_TRACKED_MAX {
            self.pending.push_back(PendingOffer { from, to, delivered_at: now.into() });
        }
    }

    /// Records the outcome of an offer, if it is pending.
    pub fn on_outcome(&mut self, from: Slot, to: Slot, outcome: Outcome, now: Duration) {
        self.remove_expired(now);
        let Some(index) = self.pending.iter().rposition(|offer| (offer.from, offer.to) == (from, to)) else {
            return;
        };
        let Some(offer) = self.pending.remove(index) else {
            return;
        };
        self.count(outcome, 1);
        if outcome == Outcome::Answered {
            self.answer_times.record(now - offer.delivered_at.get());
        }
    }

    /// Removes all pending offers from and to a peer that leaves.
    pub fn on_peer_left(&mut self, slot: Slot, now: Duration) {
        self.remove_expired(now);
        let count_before = self.pending.len();
        self.pending.retain(|offer| offer.from != slot && offer.to != slot);
        self.count(Outcome::Left, count_before - self.pending.len());
    }

    /// Counts expired offers as unanswered and removes them.
    fn remove_expired(&mut self, now: Duration) {
        let expired = self.expired_count(now);
        self.pending.drain(..expired);
        self.count(Outcome::Unanswered, expired);
    }

    fn expired_count(&self, now: Duration) -> usize {
        self.pending.iter().take_while(|offer| offer.is_expired(now)).count()
    }
}
