//! Holds the buffers of active sessions, and the shared state.
//!
//! An idle session has no [`Buffers`]. A session that becomes active takes a recycled allocation from the pool in
//! [`SharedState`], including the capacity of its vectors. The memory budget is charged for that capacity, not for the
//! bytes in use.

use std::time::Duration;

use super::inbound::Inbound;
use super::queue::Queue;
use crate::config::Config;
use crate::limits::{SPARE_BUFFERS_MAX, SPARE_BYTES_MAX};
use crate::memory_budget::Budget;
use crate::metrics::Metrics;

/// Holds the state that all sessions of the server share.
///
/// The server is single-threaded and handles one session at a time, so that each session borrows it in turn.
pub struct SharedState {
    /// The configuration of the server.
    pub config: Config,
    /// The counters that `/metrics` exports.
    pub metrics: Metrics,
    /// The time since the start of the server, read from the clock once per iteration of the loop.
    pub now: Duration,
    /// The memory in use, and its limit.
    pub budget: Budget,
    #[allow(clippy::vec_box, reason = "a session stores the box itself")]
    pool: Vec<Box<Buffers>>,
}

impl SharedState {
    /// Creates the state for sessions with this configuration.
    pub fn new(config: Config) -> SharedState {
        SharedState {
            budget: Budget::new(&config),
            config,
            metrics: Metrics::default(),
            now: Duration::ZERO,
            pool: Vec::new(),
        }
    }
}

/// Holds the incomplete input and the unsent output of an active session.
#[derive(Default)]
pub(super) struct Buffers {
    pub inbound: Inbound,
    pub queue: Queue,
    /// Bytes of input that were discarded since the session started to flush its last output.
    pub discarded_bytes: usize,
    /// Bytes that the memory budget is charged for these buffers.
    charged_bytes: usize,
}

impl Buffers {
    /// Returns the session's buffers, taking some from the pool if needed.
    pub fn acquire<'a>(slot: &'a mut Option<Box<Buffers>>, shared: &mut SharedState) -> &'a mut Buffers {
        slot.get_or_insert_with(|| shared.pool.pop().unwrap_or_default())
    }

    /// Charges the memory budget for the current capacity.
    pub fn update_budget(&mut self, budget: &mut Budget) {
        let capacity = self.inbound.capacity() + self.queue.capacity();
        budget.change(self.charged_bytes, capacity);
        self.charged_bytes = capacity;
    }

    /// Frees the buffers of a session that sends nothing more.
    pub fn free(self, budget: &mut Budget) {
        budget.change(self.charged_bytes, 0);
    }

    /// Returns the buffers of an idle session to the pool.
    ///
    /// Buffers that have grown large, or for which the pool has no room, are freed.
    pub fn recycle(mut self: Box<Buffers>, shared: &mut SharedState) {
        self.inbound.drop_codec();
        shared.budget.change(self.charged_bytes, 0);
        self.charged_bytes = 0;
        let capacity = self.inbound.capacity() + self.queue.capacity();
        if capacity <= SPARE_BYTES_MAX && shared.pool.len() < SPARE_BUFFERS_MAX {
            shared.pool.push(self);
        }
    }
}
