//! Mode call: all that a call takes.

use std::io;
use std::time::Instant;

use crate::modes::{Mode, Tally, contains};
use crate::net::{Happened, Net};

/// Whole calls: two peers connect, offer, answer, say eight candidates each, and leave.
pub struct Calls {
    pub path: String,
    pub rooms: bool,
    pub calls: Vec<Call>,
    pub running: bool,
    pub rooms_used: u64,
    pub done: u64,
    pub sdp: String,
    pub tally: Tally,
}

#[derive(Default)]
pub struct Call {
    pub path: String,
    pub began: Option<Instant>,
    pub open: usize,
    pub answered: bool,
    pub candidates: [usize; 2],
    pub slots: [usize; 2],
}

pub const CANDIDATES: usize = 8;

impl Calls {
    pub fn begin(&mut self, net: &mut Net, call: usize) -> io::Result<()> {
        self.rooms_used += 1;
        let path =
            if self.rooms { format!("{}/call-{}", self.path, self.rooms_used) } else { self.path.clone() };
        let slot = net.open(2 * call, &path)?;
        self.calls[call] =
            Call { path, began: Some(Instant::now()), open: 1, slots: [slot, 0], ..Call::default() };
        Ok(())
    }

    pub fn say_offer(net: &mut Net, slot: usize, id: &str, sdp: &str) {
        net.text(slot, &format!(r#"{{"type":"offer","id":"{id}","sdp":{sdp}}}"#));
        Self::say_candidates(net, slot, id, "");
    }

    pub fn say_candidates(net: &mut Net, slot: usize, id: &str, target: &str) {
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
        self.running = true;
        (0..self.calls.len()).try_for_each(|call| self.begin(net, call))
    }

    fn pause(&mut self) {
        self.running = false;
    }

    fn is_done(&self) -> bool {
        self.calls.iter().all(|call| call.began.is_none())
    }

    fn units(&self) -> u64 {
        self.done
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        let (index, side) = (name / 2, name % 2);
        let (a, b) = (format!("call-{index}-a"), format!("call-{index}-b"));
        let id = if side == 0 { &a } else { &b };
        let sdp = &self.sdp;
        let call = &mut self.calls[index];
        match what {
            Happened::Opened => net.text(slot, &format!(r#"{{"type":"connect","id":"{id}"}}"#)),
            Happened::Text(text) if contains(text, br#""type":"answer""#) => call.answered = true,
            Happened::Text(text) if contains(text, br#""type":"candidate"#) => {
                call.candidates[side] += text.windows(10).filter(|window| *window == b"candidate:").count();
            }
            Happened::Text(text) if contains(text, br#""type":"connect""#) => {
                // A bare relay asks nobody: it has said the first message back, and passes on what follows.
                if side == 0 {
                    call.open += 1;
                    call.slots[1] = net.open(2 * index + 1, &call.path)?;
                } else {
                    Self::say_offer(net, call.slots[0], &a, sdp);
                }
            }
            Happened::Text(text) if contains(text, br#""type":"offer""#) => {
                if side == 1 {
                    net.text(
                        slot,
                        &format!(r#"{{"type":"answer","id":"{b}","target_id":"{a}","sdp":{sdp}}}"#),
                    );
                    Self::say_candidates(net, slot, &b, &a);
                } else {
                    Self::say_offer(net, slot, &a, sdp);
                    // The pong says that the offer stands.
                    net.send(slot, 9, &[]);
                }
            }
            Happened::Text(text) => {
                // `peerLeft` may still come while the two leave.
                self.tally.error(text);
            }
            Happened::Pong => {
                call.open += 1;
                call.slots[1] = net.open(2 * index + 1, &call.path)?;
            }
            Happened::Closed => {
                call.open -= 1;
                if call.open == 0 {
                    call.began = None;
                    if self.running {
                        self.begin(net, index)?;
                    }
                }
                return Ok(());
            }
        }
        let call = &mut self.calls[index];
        if call.answered && call.candidates == [CANDIDATES; 2] {
            // Once and for all.
            call.candidates = [CANDIDATES + 1; 2];
            self.tally.took(call.began.expect("it has begun").elapsed());
            self.done += 1;
            for slot in self.calls[index].slots {
                net.send(slot, 8, &[&1000u16.to_be_bytes()]);
            }
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        self.tally.lost = self.calls.iter().filter(|call| call.began.is_some()).count() as u64;
        &mut self.tally
    }
}
