//! What connections can do, and the least of it: to be idle.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::net::{Happened, Net, gone};

/// Something to do, over and over.
pub trait Mode {
    /// Begins, or goes on.
    fn resume(&mut self, net: &mut Net) -> io::Result<()>;
    /// Begins nothing new from now on.
    fn pause(&mut self);
    /// Whether all that was begun is done.
    fn is_done(&self) -> bool;
    /// What was done so far.
    fn units(&self) -> u64;
    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()>;
    fn tally(&mut self) -> &mut Tally;
    /// How many connections are there before it begins.
    fn registered(&self) -> usize {
        0
    }
}

pub struct Tally {
    /// Times in nanoseconds.
    pub times: Histogram<u64>,
    pub lost: u64,
    pub doubled: u64,
    pub disordered: u64,
    /// Errors that the server answered, by its words.
    pub errors: u64,
    pub rate_limited: u64,
}

impl Tally {
    pub fn new() -> Tally {
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are fine");
        Tally { times, lost: 0, doubled: 0, disordered: 0, errors: 0, rate_limited: 0 }
    }

    pub fn took(&mut self, time: Duration) {
        self.times.saturating_record(time.as_nanos() as u64);
    }

    /// Whether this is an error, which is then counted.
    pub fn error(&mut self, text: &[u8]) -> bool {
        let is_error = contains(text, b"\"type\":\"error\"");
        if is_error && contains(text, b"rate_limited") {
            self.rate_limited += 1;
        } else {
            self.errors += u64::from(is_error);
        }
        is_error
    }
}

pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Registers a connection: a candidate for oneself is answered by every server, in one way or another, and
/// leaves nothing behind.
pub fn register(net: &mut Net, slot: usize, id: &str) {
    net.text(slot, &format!(r#"{{"type":"candidateAdd","id":"{id}","target_id":"{id}","candidate":0}}"#));
}

/// Connections that are registered and then do nothing.
pub struct Idle {
    pub path: String,
    /// How many are in one room; 0: all of them.
    pub room_size: usize,
    /// Whether they have joined its mesh.
    pub joined: bool,
    pub ready: usize,
    pub of: usize,
    pub tally: Tally,
}

impl Mode for Idle {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        // Few at a time: nobody's backlog is to overflow.
        while net.clients.len() < self.of && net.clients.len() < self.ready + 50 {
            let number = net.clients.len();
            match number.checked_div(self.room_size) {
                Some(room) => net.open(number, &format!("{}/idle-{room}", self.path))?,
                None => net.open(number, &self.path)?,
            };
        }
        Ok(())
    }

    fn pause(&mut self) {}

    fn is_done(&self) -> bool {
        self.ready == self.of
    }

    fn units(&self) -> u64 {
        self.ready as u64
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        match what {
            Happened::Opened if self.joined => {
                net.text(slot, &format!(r#"{{"type":"join","id":"idle-{name:08}"}}"#));
            }
            Happened::Opened => register(net, slot, &format!("idle-{name:08}")),
            // What others do, who join, is nothing new.
            Happened::Text(text) if text.starts_with(br#"{"type":"peerJoined""#) => {}
            Happened::Text(_) => {
                self.ready += 1;
                self.resume(net)?;
            }
            Happened::Pong => {}
            Happened::Closed => return Err(gone()),
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}
