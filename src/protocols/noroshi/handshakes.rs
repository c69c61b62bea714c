//! Which offers are answered, and how soon: by this an operator sees whether users get through.
//!
//! What counts is an offer that has reached somebody. Between two there is one at a time: a newer one takes its place,
//! whoever of them it is from.

use std::collections::VecDeque;
use std::time::Duration;

use super::Slot;
use crate::config::{HANDSHAKE_TIME_MAX, HANDSHAKES_MAX};
use crate::metrics::Histogram;
use crate::named_enum::named_enum;
use crate::timestamp::Timestamp;

named_enum! {
    /// What became of an offer.
    pub enum Outcome {
        /// An answer to it was passed on.
        Answered = "answered",
        /// None came in time.
        Unanswered = "unanswered",
        /// It, or the answer to it, was refused.
        Refused = "refused",
        /// One of the two has left.
        Left = "left",
    }
}

#[derive(Default)]
pub struct Handshakes {
    /// Who has offered something to whom, and when; oldest first. They are few, and looked through.
    open: VecDeque<(Slot, Slot, Timestamp)>,
    /// What became of those that are over, by [`Outcome`].
    outcomes: [u64; Outcome::ALL.len()],
    /// How long it took until they were answered.
    answers: Histogram,
}

impl Handshakes {
    /// For the metrics.
    pub fn counts(&self, now: Duration) -> (Vec<(&'static str, u64)>, Histogram) {
        let mut outcomes = self.outcomes;
        outcomes[Outcome::Unanswered as usize] += self.overdue(now) as u64;
        (Outcome::ALL.map(Outcome::name).into_iter().zip(outcomes).collect(), self.answers.clone())
    }

    /// Whose they are.
    pub fn peers(&self) -> impl Iterator<Item = Slot> {
        self.open.iter().flat_map(|(from, to, _)| [*from, *to])
    }

    /// What became of one or more.
    pub fn count(&mut self, outcome: Outcome, number: usize) {
        self.outcomes[outcome as usize] += number as u64;
    }

    /// An offer has reached somebody. Those that are too many are not followed.
    pub fn begin(&mut self, from: Slot, to: Slot, now: Duration) {
        self.expire(now);
        self.open.retain(|(a, b, _)| (*a, *b) != (from, to) && (*a, *b) != (to, from));
        if self.open.len() < HANDSHAKES_MAX {
            self.open.push_back((from, to, now.into()));
        }
    }

    /// The offer is over, if there is one.
    pub fn end(&mut self, from: Slot, to: Slot, outcome: Outcome, now: Duration) {
        self.expire(now);
        let found = self.open.iter().rposition(|(a, b, _)| (*a, *b) == (from, to));
        let Some((.., since)) = found.and_then(|at| self.open.remove(at)) else { return };
        self.count(outcome, 1);
        if outcome == Outcome::Answered {
            self.answers.record(now - since.get());
        }
    }

    /// A peer has left all others.
    pub fn leave(&mut self, slot: Slot, now: Duration) {
        self.expire(now);
        let before = self.open.len();
        self.open.retain(|(from, to, _)| *from != slot && *to != slot);
        self.count(Outcome::Left, before - self.open.len());
    }

    /// Gives up those that had their time.
    fn expire(&mut self, now: Duration) {
        let overdue = self.overdue(now);
        self.open.drain(..overdue);
        self.count(Outcome::Unanswered, overdue);
    }

    fn overdue(&self, now: Duration) -> usize {
        self.open.iter().take_while(|(.., since)| since.get() + HANDSHAKE_TIME_MAX <= now).count()
    }
}
