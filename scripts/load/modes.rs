//! The trait of load modes, their results, and mode `idle`.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::dialects::Dialect;
use crate::net::{Event, Net, server_closed};

/// A kind of work that is repeated over connections.
pub trait Mode {
    /// Starts work, or continues after a pause.
    fn resume(&mut self, net: &mut Net) -> io::Result<()>;
    /// Stops starting new work.
    fn pause(&mut self);
    /// Returns whether all work that was started is complete.
    fn is_done(&self) -> bool;
    /// Returns how many units of work are complete.
    fn units(&self) -> u64;
    /// Handles an event of the connection in a slot. `index` is the mode's own number of the connection.
    fn on_event(&mut self, net: &mut Net, slot: usize, index: usize, event: Event) -> io::Result<()>;
    fn results(&mut self) -> &mut Results;
    /// Returns how many connections are registered before the work starts.
    fn registered(&self) -> usize {
        0
    }
}

/// Latencies and errors of a measurement.
pub struct Results {
    /// In nanoseconds.
    pub latencies: Histogram<u64>,
    pub lost: u64,
    pub duplicates: u64,
    pub reordered: u64,
    /// Errors in replies of the server, except `rate_limited`.
    pub errors: u64,
    pub rate_limited: u64,
}

impl Results {
    pub fn new() -> Results {
        let latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid");
        Results { latencies, lost: 0, duplicates: 0, reordered: 0, errors: 0, rate_limited: 0 }
    }

    /// Returns how many messages were answered with errors, arrived twice or arrived out of order.
    pub fn failures(&self) -> u64 {
        self.errors + self.rate_limited + self.duplicates + self.reordered
    }

    pub fn record_latency(&mut self, latency: Duration) {
        self.latencies.saturating_record(latency.as_nanos() as u64);
    }

    /// Counts a reply if it is an error.
    pub fn count_error(&mut self, text: &[u8]) {
        let is_error = contains(text, b"\"type\":\"error\"");
        if !is_error {
            return;
        }
        if contains(text, b"rate_limited") {
            self.rate_limited += 1;
        } else {
            self.errors += 1;
        }
    }
}

pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Mode `idle`: connections that register and then are idle.
pub struct Idle {
    pub dialect: Dialect,
    pub path: String,
    /// Connections in one room; 0: all of them.
    pub room_size: usize,
    /// Whether the connections join the mesh of their room.
    pub joins: bool,
    pub registered: usize,
    pub total: usize,
    pub results: Results,
}

impl Idle {
    /// Returns the name of a connection's room.
    fn room(&self, index: usize) -> String {
        format!("idle-{}", index.checked_div(self.room_size).unwrap_or(0))
    }
}

impl Mode for Idle {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        // At most 50 handshakes at a time, so that the listen backlog does not overflow.
        while net.clients.len() < self.total && net.clients.len() < self.registered + 50 {
            let index = net.clients.len();
            let path = match self.room_size {
                0 => self.dialect.shared_path(&self.path, "idle"),
                _ => self.dialect.room_path(&self.path, &self.room(index)),
            };
            net.open(index, &path)?;
        }
        Ok(())
    }

    fn pause(&mut self) {}

    fn is_done(&self) -> bool {
        self.registered == self.total
    }

    fn units(&self) -> u64 {
        self.registered as u64
    }

    fn on_event(&mut self, net: &mut Net, slot: usize, index: usize, event: Event) -> io::Result<()> {
        match event {
            Event::Opened if self.joins => {
                net.text(slot, &format!(r#"{{"type":"join","id":"idle-{index:08}"}}"#));
            }
            Event::Opened => self.dialect.register(net, slot, &self.room(index), &format!("idle-{index:08}")),
            Event::Text(text) if self.dialect.answer_ping(net, slot, text) => {}
            Event::Text(text) if self.dialect.is_registered(text) => {
                self.registered += 1;
                self.resume(net)?;
            }
            Event::Text(_) | Event::Pong => {}
            Event::Closed => return Err(server_closed()),
        }
        Ok(())
    }

    fn results(&mut self) -> &mut Results {
        &mut self.results
    }
}
