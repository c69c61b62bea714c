//! Which offers are answered, and how soon: by this an operator sees whether users get through.
//!
//! What counts is an offer that has reached somebody. Between two there is one at a time: a newer one takes its place,
//! whoever of them it is from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Slot;
use crate::config::{HANDSHAKE_TIME_MAX, HANDSHAKES_MAX};
use crate::metrics::Histogram;
use crate::named::named;
use crate::stamp::Stamp;

named! {
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
    /// Who has offered something to whom, and until when there is time.
    offers: BTreeMap<(Slot, Slot), Stamp>,
    /// To whom somebody has offered something, by the other way round.
    offerers: BTreeSet<(Slot, Slot)>,
    order: BTreeSet<(Stamp, Slot, Slot)>,
    /// What became of those that are over, by [`Outcome`].
    outcomes: [u64; Outcome::ALL.len()],
    /// How long it took until they were answered.
    answers: Histogram,
}

impl Handshakes {
    /// For the metrics.
    pub fn counts(&self, now: Duration) -> (Vec<(&'static str, u64)>, Histogram) {
        let mut outcomes = self.outcomes;
        outcomes[Outcome::Unanswered as usize] += self.overdue(now).count() as u64;
        (Outcome::ALL.map(Outcome::name).into_iter().zip(outcomes).collect(), self.answers.clone())
    }

    pub fn count(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }

    /// An offer has reached somebody. Those that are too many are not followed.
    pub fn begin(&mut self, from: Slot, to: Slot, now: Duration) {
        let overdue: Vec<_> = self.overdue(now).collect();
        overdue.into_iter().for_each(|(from, to)| self.end(from, to, Outcome::Unanswered, now));
        self.forget(from, to);
        self.forget(to, from);
        if self.offers.len() < HANDSHAKES_MAX {
            let until = (now + HANDSHAKE_TIME_MAX).into();
            self.offers.insert((from, to), until);
            self.offerers.insert((to, from));
            self.order.insert((until, from, to));
        }
    }

    /// The offer is over, if there is one.
    pub fn end(&mut self, from: Slot, to: Slot, outcome: Outcome, now: Duration) {
        match self.forget(from, to) {
            None => {}
            Some(until) if until.get() <= now => self.count(Outcome::Unanswered),
            Some(until) => {
                self.count(outcome);
                if outcome == Outcome::Answered {
                    self.answers.record(now + HANDSHAKE_TIME_MAX - until.get());
                }
            }
        }
    }

    /// A peer has left all others.
    pub fn leave(&mut self, slot: Slot, now: Duration) {
        let all = (slot, 0)..=(slot, Slot::MAX);
        let to: Vec<Slot> = self.offers.range(all.clone()).map(|((_, to), _)| *to).collect();
        let from: Vec<Slot> = self.offerers.range(all).map(|(_, from)| *from).collect();
        to.into_iter().for_each(|to| self.end(slot, to, Outcome::Left, now));
        from.into_iter().for_each(|from| self.end(from, slot, Outcome::Left, now));
    }

    /// Those that had their time, oldest first.
    fn overdue(&self, now: Duration) -> impl Iterator<Item = (Slot, Slot)> {
        let overdue = self.order.iter().take_while(move |(until, ..)| until.get() <= now);
        overdue.map(|(_, from, to)| (*from, *to))
    }

    fn forget(&mut self, from: Slot, to: Slot) -> Option<Stamp> {
        let until = self.offers.remove(&(from, to))?;
        self.offerers.remove(&(to, from));
        self.order.remove(&(until, from, to));
        Some(until)
    }
}
