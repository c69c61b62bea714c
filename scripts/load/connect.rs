//! Modes `connect` and `churn`: handshakes, and connections that register and close.

use std::io;
use std::time::Instant;

use crate::modes::{Mode, Results, register};
use crate::net::{CLOSE_NORMAL, Event, Net, OPCODE_CLOSE};

/// Connections that are closed after the handshake, or in `churn` after registering.
pub struct Connect {
    pub path: String,
    pub registers: bool,
    pub concurrency: usize,
    pub is_running: bool,
    pub open_connections: usize,
    pub started_at: Vec<Instant>,
    pub complete: u64,
    pub results: Results,
}

impl Connect {
    pub fn start(&mut self, net: &mut Net, index: usize) -> io::Result<()> {
        self.open_connections += 1;
        self.started_at[index] = Instant::now();
        net.open(index, &self.path).map(|_| ())
    }

    pub fn complete(&mut self, net: &mut Net, slot: usize, index: usize) {
        self.results.record_latency(self.started_at[index].elapsed());
        self.complete += 1;
        net.send(slot, OPCODE_CLOSE, &[&CLOSE_NORMAL.to_be_bytes()]);
    }
}

impl Mode for Connect {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        self.is_running = true;
        (0..self.concurrency).try_for_each(|index| self.start(net, index))
    }

    fn pause(&mut self) {
        self.is_running = false;
    }

    fn is_done(&self) -> bool {
        self.open_connections == 0
    }

    fn units(&self) -> u64 {
        self.complete
    }

    fn on_event(&mut self, net: &mut Net, slot: usize, index: usize, event: Event) -> io::Result<()> {
        match event {
            Event::Opened if self.registers => register(net, slot, &format!("churn-{index}")),
            Event::Opened | Event::Text(_) => self.complete(net, slot, index),
            Event::Pong => {}
            Event::Closed => {
                self.open_connections -= 1;
                if self.is_running {
                    self.start(net, index)?;
                }
            }
        }
        Ok(())
    }

    fn results(&mut self) -> &mut Results {
        self.results.lost = self.open_connections as u64;
        &mut self.results
    }
}
