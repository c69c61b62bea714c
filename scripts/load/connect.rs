//! Modes `connect` and `churn`: handshakes, and connections that register and close.

use std::io;
use std::time::Instant;

use crate::dialects::Dialect;
use crate::modes::{Mode, Results};
use crate::net::{CLOSE_NORMAL, Event, Net, OPCODE_CLOSE};

/// Connections that are closed after the handshake, or in `churn` after registering.
pub struct Connect {
    pub dialect: Dialect,
    pub path: String,
    pub registers: bool,
    /// The room of each connection.
    pub rooms: Vec<String>,
    pub rooms_count: u64,
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
        self.rooms_count += 1;
        self.rooms[index] = format!("churn-{}", self.rooms_count);
        net.open(index, &self.dialect.shared_path(&self.path, &self.rooms[index])).map(|_| ())
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
            Event::Opened if self.registers => {
                self.dialect.register(net, slot, &self.rooms[index], &format!("churn-{index}"));
            }
            Event::Opened => self.complete(net, slot, index),
            Event::Text(text) if self.registers && self.dialect.is_registered(text) => {
                self.complete(net, slot, index);
            }
            Event::Text(_) | Event::Pong => {}
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
