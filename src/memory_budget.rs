//! Accounts for the memory that peers make the server use (`--max-memory`).
//!
//! Memory is counted before it is allocated; what would exceed the limit is refused. Sessions report the size of their
//! buffers as it changes ([`Budget::change`]). Protocols hold a [`Reservation`] for everything they store, which gives
//! its bytes back when it is dropped, so that accounting cannot drift.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;

use crate::config::{BASE_BYTES, Config};

/// The limit, and the bytes in use.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    /// Used by connections: their records, queues and incoming messages.
    used: usize,
    /// Reserved by protocols. Shared with the reservations, which subtract from it when they are dropped.
    reserved: Rc<Cell<usize>>,
}

/// Bytes that a protocol has reserved. Dropping it releases them.
#[derive(Debug)]
pub struct Reservation {
    bytes: usize,
    reserved: Rc<Cell<usize>>,
}

impl Reservation {
    /// Takes over the bytes of another reservation.
    pub fn absorb(&mut self, mut other: Reservation) {
        self.bytes += mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.set(self.reserved.get() - self.bytes);
    }
}

impl Budget {
    /// Creates the budget that the configuration allows.
    pub fn new(config: &Config) -> Budget {
        Budget {
            bytes_max: config.memory_bytes_max.unwrap_or(usize::MAX),
            used: BASE_BYTES,
            reserved: Rc::default(),
        }
    }

    /// Returns whether this many further bytes may be used.
    pub fn allows(&self, bytes: usize) -> bool {
        self.used().saturating_add(bytes) <= self.bytes_max
    }

    /// Reserves bytes for something that a protocol stores, if the limit allows it.
    pub fn reserve(&self, bytes: usize) -> Option<Reservation> {
        if !self.allows(bytes) {
            return None;
        }
        self.reserved.set(self.reserved.get() + bytes);
        Some(Reservation { bytes, reserved: Rc::clone(&self.reserved) })
    }

    /// Records that a buffer counted with `before` bytes has `now` bytes.
    pub fn change(&mut self, before: usize, now: usize) {
        self.used = self.used + now - before;
    }

    /// Returns the bytes in use, as far as they are counted.
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
        drop(both);
        assert_eq!(budget.used(), BASE_BYTES);
    }
}
