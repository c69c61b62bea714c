//! Modes connect and churn: handshakes, and whole lives.

use std::io;
use std::time::Instant;

use crate::modes::{Mode, Tally, register};
use crate::net::{Happened, Net};

/// Handshakes, and in `churn` registrations, each followed by a goodbye.
pub struct Connect {
    pub path: String,
    pub registers: bool,
    pub at_once: usize,
    pub running: bool,
    pub open: usize,
    pub began: Vec<Instant>,
    pub done: u64,
    pub tally: Tally,
}

impl Connect {
    pub fn begin(&mut self, net: &mut Net, name: usize) -> io::Result<()> {
        self.open += 1;
        self.began[name] = Instant::now();
        net.open(name, &self.path).map(|_| ())
    }

    pub fn reached(&mut self, net: &mut Net, slot: usize, name: usize) {
        self.tally.took(self.began[name].elapsed());
        self.done += 1;
        net.send(slot, 8, &[&1000u16.to_be_bytes()]);
    }
}

impl Mode for Connect {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        self.running = true;
        (0..self.at_once).try_for_each(|name| self.begin(net, name))
    }

    fn pause(&mut self) {
        self.running = false;
    }

    fn is_done(&self) -> bool {
        self.open == 0
    }

    fn units(&self) -> u64 {
        self.done
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        match what {
            Happened::Opened if self.registers => register(net, slot, &format!("churn-{name}")),
            Happened::Opened | Happened::Text(_) => self.reached(net, slot, name),
            Happened::Pong => {}
            Happened::Closed => {
                self.open -= 1;
                if self.running {
                    self.begin(net, name)?;
                }
            }
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        self.tally.lost = self.open as u64;
        &mut self.tally
    }
}
