//! What is under way in a session, and what all sessions share.
//!
//! A session at rest has no [`Work`]: it takes the box of another that came to rest, buffers and all. What the budget
//! counts for a work is what its buffers can hold.

use std::mem;
use std::time::Duration;

use super::inbound::Inbound;
use super::queue::Queue;
use crate::config::Config;
use crate::limits::{SPARE_BUFFERS_MAX, SPARE_BYTES_MAX};
use crate::memory_budget::Budget;
use crate::metrics::Metrics;

/// What all sessions share, because only one is at work at a time.
pub struct Shared {
    /// What the operator chose.
    pub config: Config,
    /// What is counted.
    pub metrics: Metrics,
    /// The time since the start, looked up once a turn.
    pub now: Duration,
    /// How much memory is used.
    pub budget: Budget,
    #[allow(clippy::vec_box, reason = "sessions take them as they are")]
    spare: Vec<Box<Work>>,
}

impl Shared {
    /// For sessions under this configuration.
    pub fn new(config: Config) -> Shared {
        Shared {
            budget: Budget::new(&config),
            config,
            metrics: Metrics::default(),
            now: Duration::ZERO,
            spare: Vec::new(),
        }
    }
}

/// What is under way in a session.
#[derive(Default)]
pub(super) struct Work {
    pub inbound: Inbound,
    pub queue: Queue,
    /// What was thrown away because nothing that comes in matters any more.
    pub thrown_away: usize,
    /// What the budget counts for it.
    charged: usize,
}

impl Work {
    /// The work of a session, which begins now if it has none.
    pub fn begin<'a>(work: &'a mut Option<Box<Work>>, shared: &mut Shared) -> &'a mut Work {
        work.get_or_insert_with(|| shared.spare.pop().unwrap_or_default())
    }

    /// Has the budget count what it uses now.
    pub fn charge(&mut self, budget: &mut Budget) {
        let charged = self.inbound.capacity() + self.queue.capacity();
        budget.change(mem::replace(&mut self.charged, charged), charged);
    }

    /// The session is gone, or has nothing more to say.
    pub fn end(self, budget: &mut Budget) {
        budget.change(self.charged, 0);
    }

    /// The session has come to rest. Another may have the box.
    pub fn rest(mut self: Box<Work>, shared: &mut Shared) {
        self.inbound.rest();
        shared.budget.change(mem::take(&mut self.charged), 0);
        let capacity = self.inbound.capacity().max(self.queue.capacity());
        if capacity <= SPARE_BYTES_MAX && shared.spare.len() < SPARE_BUFFERS_MAX {
            shared.spare.push(self);
        }
    }
}
