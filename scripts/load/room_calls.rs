//! Mode `call` in dialects whose servers only forward messages between the peers of a room.

use std::io;
use std::time::Instant;

use crate::calls::{CANDIDATES, Call};
use crate::dialects::Dialect;
use crate::modes::{Mode, Results};
use crate::net::{CLOSE_NORMAL, Event, Net, OPCODE_CLOSE};

/// Calls: two peers enter a room, exchange offer and answer, send [`CANDIDATES`] candidates each, and leave.
pub struct RoomCalls {
    pub dialect: Dialect,
    pub path: String,
    pub calls: Vec<Call>,
    /// The number of the room of each call.
    pub rooms: Vec<u64>,
    pub rooms_count: u64,
    pub is_running: bool,
    pub complete: u64,
    /// A JSON string.
    pub sdp: String,
    pub results: Results,
}

impl RoomCalls {
    fn start_call(&mut self, net: &mut Net, call: usize) -> io::Result<()> {
        self.rooms_count += 1;
        self.rooms[call] = self.rooms_count;
        let path = self.dialect.room_path(&self.path, &room_name(self.rooms_count));
        let slot = net.open(2 * call, &path)?;
        let started_at = Some(Instant::now());
        self.calls[call] =
            Call { path, started_at, open_connections: 1, slots: [slot, 0], ..Call::default() };
        Ok(())
    }

    fn send(&self, net: &mut Net, slot: usize, to: &str, is_offer: bool) {
        net.text(slot, &self.dialect.description(to, is_offer, &self.sdp));
        for i in 0..CANDIDATES {
            let candidate = format!(r#""candidate:{i} 1 udp 2122260223 192.0.2.{i} 5000{i} typ host""#);
            net.text(slot, &self.dialect.candidate(to, &candidate));
        }
    }
}

fn room_name(number: u64) -> String {
    format!("call-{number}")
}

impl Mode for RoomCalls {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        self.is_running = true;
        (0..self.calls.len()).try_for_each(|call| self.start_call(net, call))
    }

    fn pause(&mut self) {
        self.is_running = false;
    }

    fn is_done(&self) -> bool {
        self.calls.iter().all(|call| call.started_at.is_none())
    }

    fn units(&self) -> u64 {
        self.complete
    }

    fn on_event(&mut self, net: &mut Net, slot: usize, index: usize, event: Event) -> io::Result<()> {
        let side = index % 2;
        let index = index / 2;
        let room = room_name(self.rooms[index]);
        match event {
            Event::Opened => self.dialect.register(net, slot, &room, &format!("peer-{side}")),
            Event::Text(text) if self.dialect.answer_ping(net, slot, text) => {}
            Event::Text(text) => {
                if self.dialect.is_registered(text) && side == 0 {
                    let call = &mut self.calls[index];
                    call.open_connections += 1;
                    call.slots[1] = net.open(2 * index + 1, &call.path)?;
                }
                if let Some(partner) = self.dialect.new_partner(text) {
                    self.send(net, slot, &partner, true);
                } else if self.dialect.is_offer(text) {
                    self.send(net, slot, &self.dialect.sender(text), false);
                } else if self.dialect.is_answer(text) {
                    self.calls[index].is_answered = true;
                } else if text.windows(10).any(|window| window == b"candidate:") {
                    self.calls[index].candidates[side] += 1;
                }
            }
            Event::Pong => {}
            Event::Closed => {
                let call = &mut self.calls[index];
                call.open_connections -= 1;
                if call.open_connections == 0 {
                    call.started_at = None;
                    if self.is_running {
                        self.start_call(net, index)?;
                    }
                }
                return Ok(());
            }
        }
        let call = &mut self.calls[index];
        if call.is_answered && call.candidates == [CANDIDATES; 2] && !call.is_complete {
            call.is_complete = true;
            self.results.record_latency(call.started_at.expect("the call is in progress").elapsed());
            self.complete += 1;
            for slot in self.calls[index].slots {
                // The server may close the second connection when the first one leaves.
                if net.clients.contains(slot) {
                    net.send(slot, OPCODE_CLOSE, &[&CLOSE_NORMAL.to_be_bytes()]);
                }
            }
        }
        Ok(())
    }

    fn results(&mut self) -> &mut Results {
        self.results.lost = self.calls.iter().filter(|call| call.started_at.is_some()).count() as u64;
        &mut self.results
    }
}
