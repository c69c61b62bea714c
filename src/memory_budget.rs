//! Accounts for the memory that peers make the server use (`--max-memory`).
//!
//! The limit is checked before a message is queued or stored; what would exceed it is rejected. It is not a limit of the
//! allocator:
//!
//! - Sessions report the capacity of their buffers after each change ([`Budget::change`]). Control frames, one read of a
//!   request head, and queues of less than [`ALWAYS_HELD_BYTES`](crate::limits::ALWAYS_HELD_BYTES) may exceed the limit.
//! - Protocols hold a [`Reservation`] for offers, candidates, pending claims and subscriptions. It releases its bytes when it is
//!   dropped.
//! - A message for several sessions that all their queues share holds a [`Reservation`] too: it is counted once.
//! - [`CONNECTION_BYTES`](crate::limits::CONNECTION_BYTES) of each connection cover its session, its peer with its id, and its
//!   room.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;

use crate::config::Config;
use crate::limits::BASE_BYTES;

/// The memory limit and the bytes in use.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    /// Bytes used by connections: their records, queues and incoming messages.
    used: usize,
    /// Bytes reserved by protocols. Shared with the reservations, which subtract from it when they are dropped.
    reserved: Rc<Cell<usize>>,
}

/// Bytes that a protocol has reserved. Dropping it releases them.
#[derive(Debug)]
pub struct Reservation {
    bytes: usize,
    reserved: Rc<Cell<usize>>,
}

impl Reservation {
    /// Adds the bytes of another reservation to this one.
    pub fn absorb(&mut self, mut other: Reservation) {
        self.bytes += mem::take(&mut other.bytes);
    }

    /// Releases some of its bytes.
    ///
    /// # Panics
    /// It has fewer.
    pub fn release(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "no more bytes are released than are reserved");
        self.bytes -= bytes;
        self.reserved.set(self.reserved.get() - bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.set(self.reserved.get() - self.bytes);
    }
}

impl Budget {
    /// Creates the budget of a configuration.
    pub fn new(config: &Config) -> Budget {
        Budget {
            bytes_max: config.memory_bytes_max.unwrap_or(usize::MAX),
            used: BASE_BYTES,
            reserved: Rc::default(),
        }
    }

    /// Returns whether this many further bytes fit into the limit.
    pub fn allows(&self, bytes: usize) -> bool {
        self.used().saturating_add(bytes) <= self.bytes_max
    }

    /// Reserves bytes for data that a protocol stores, or returns `None` at the limit.
    pub fn reserve(&self, bytes: usize) -> Option<Reservation> {
        self.allows(bytes).then(|| self.charge(bytes))
    }

    /// Reserves bytes even above the limit: for memory that is in use already.
    pub fn charge(&self, bytes: usize) -> Reservation {
        self.reserved.set(self.reserved.get() + bytes);
        Reservation { bytes, reserved: Rc::clone(&self.reserved) }
    }

    /// Replaces the counted size of a buffer, `before` bytes, by `now` bytes.
    pub fn change(&mut self, before: usize, now: usize) {
        self.used = self.used + now - before;
    }

    /// Returns the counted bytes in use.
    pub fn used(&self) -> usize {
        self.used + self.reserved()
    }

    /// Returns the bytes that protocols have reserved.
    pub fn reserved(&self) -> usize {
        self.reserved.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_reservation_releases_its_bytes() {
        let config = Config { memory_bytes_max: Some(BASE_BYTES + 100), ..Config::default() };
        let budget = Budget::new(&config);
        let first = budget.reserve(60).expect("60 of 100");
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(40).expect("100 of 100");
        assert_eq!(budget.reserved(), 100);
        drop(first);
        assert_eq!(budget.reserved(), 40);
        assert!(budget.allows(60) && !budget.allows(61));
        let mut both = budget.reserve(10).expect("50 of 100");
        both.absorb(second);
        assert_eq!(budget.reserved(), 50);
        both.release(45);
        assert_eq!(budget.reserved(), 5);
        let above_limit = budget.charge(1000);
        assert_eq!(budget.reserved(), 1005);
        assert!(!budget.allows(0));
        drop((both, above_limit));
        assert_eq!(budget.used(), BASE_BYTES);
    }
}
