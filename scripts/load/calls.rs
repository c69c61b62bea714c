//! Mode `call`: whole calls.

use std::io;
use std::time::Instant;

use crate::modes::{Mode, Results, contains};
use crate::net::{CLOSE_NORMAL, Event, Net, OPCODE_CLOSE, OPCODE_PING};

/// Calls: two peers connect, exchange offer and answer, send [`CANDIDATES`] candidates each, and leave.
pub struct Calls {
    pub path: String,
    /// Whether each call has its own room.
    pub uses_rooms: bool,
    pub calls: Vec<Call>,
    pub is_running: bool,
    pub rooms_count: u64,
    pub complete: u64,
    pub sdp: String,
    pub results: Results,
}

/// A sequence of calls, one at a time, between a caller (0) and a callee (1).
#[derive(Default)]
pub struct Call {
    pub path: String,
    /// `None`: no call is in progress.
    pub started_at: Option<Instant>,
    pub open_connections: usize,
    pub is_answered: bool,
    /// Whether the call is counted as complete.
    pub is_complete: bool,
    /// Candidates received by each peer.
    pub candidates: [usize; 2],
    pub slots: [usize; 2],
}

/// Candidates that each peer of a call sends.
pub const CANDIDATES: usize = 8;

impl Calls {
    pub fn start_call(&mut self, net: &mut Net, call: usize) -> io::Result<()> {
        self.rooms_count += 1;
        let path = if self.uses_rooms {
            format!("{}/call-{}", self.path, self.rooms_count)
        } else {
            self.path.clone()
        };
        let slot = net.open(2 * call, &path)?;
        self.calls[call] = Call {
            path,
            started_at: Some(Instant::now()),
            open_connections: 1,
            slots: [slot, 0],
            ..Call::default()
        };
        Ok(())
    }

    pub fn send_offer(net: &mut Net, slot: usize, id: &str, sdp: &str) {
        net.text(slot, &format!(r#"{{"type":"offer","id":"{id}","sdp":{sdp}}}"#));
        Self::send_candidates(net, slot, id, "");
    }

    pub fn send_candidates(net: &mut Net, slot: usize, id: &str, target: &str) {
        for i in 0..CANDIDATES {
            let candidate = format!(
                r#"{{"candidate":"candidate:{i} 1 udp 2122260223 192.0.2.{i} 5000{i} typ host generation 0 ufrag EsAw","sdpMid":"0","sdpMLineIndex":0}}"#
            );
            let text = format!(
                r#"{{"type":"candidateAdd","id":"{id}","target_id":"{target}","candidate":{candidate}}}"#
            );
            net.text(slot, &text);
        }
    }
}

impl Mode for Calls {
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
        let caller = format!("call-{index}-a");
        let callee = format!("call-{index}-b");
        let id = if side == 0 { &caller } else { &callee };
        let sdp = &self.sdp;
        let call = &mut self.calls[index];
        match event {
            Event::Opened => net.text(slot, &format!(r#"{{"type":"connect","id":"{id}"}}"#)),
            Event::Text(text) if contains(text, br#""type":"answer""#) => call.is_answered = true,
            Event::Text(text) if contains(text, br#""type":"candidate"#) => {
                call.candidates[side] += text.windows(10).filter(|window| *window == b"candidate:").count();
            }
            Event::Text(text) if contains(text, br#""type":"connect""#) => {
                // A bare relay has echoed the first message, and forwards the following ones.
                if side == 0 {
                    call.open_connections += 1;
                    call.slots[1] = net.open(2 * index + 1, &call.path)?;
                } else {
                    Self::send_offer(net, call.slots[0], &caller, sdp);
                }
            }
            Event::Text(text) if contains(text, br#""type":"offer""#) => {
                if side == 1 {
                    let answer =
                        format!(r#"{{"type":"answer","id":"{callee}","target_id":"{caller}","sdp":{sdp}}}"#);
                    net.text(slot, &answer);
                    Self::send_candidates(net, slot, &callee, &caller);
                } else {
                    Self::send_offer(net, slot, &caller, sdp);
                    // The pong shows that the server has processed the offer.
                    net.send(slot, OPCODE_PING, &[]);
                }
            }
            Event::Text(text) => {
                // `peerLeft` may arrive while the two leave.
                self.results.count_error(text);
            }
            Event::Pong => {
                call.open_connections += 1;
                call.slots[1] = net.open(2 * index + 1, &call.path)?;
            }
            Event::Closed => {
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
                net.send(slot, OPCODE_CLOSE, &[&CLOSE_NORMAL.to_be_bytes()]);
            }
        }
        Ok(())
    }

    fn results(&mut self) -> &mut Results {
        self.results.lost = self.calls.iter().filter(|call| call.started_at.is_some()).count() as u64;
        &mut self.results
    }
}
