//! Mode `relay`: candidates or SDPs from one peer to another.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::Instant;

use crate::dialects::Dialect;
use crate::flags::Flags;
use crate::modes::{Mode, Results};
use crate::net::{Event, Net, OPCODE_TEXT, server_closed};

/// Pairs of peers: in each, a sender sends numbered candidates to a receiver.
pub struct Relay {
    pub dialect: Dialect,
    pub payload: usize,
    pub pairs: Vec<Pair>,
    pub in_flight: usize,
    pub is_running: bool,
    pub registered: usize,
    pub received: u64,
    pub results: Results,
}

#[derive(Default)]
pub struct Pair {
    /// The slot of the sender.
    pub sender: usize,
    /// The message up to its number.
    pub prefix: Vec<u8>,
    /// The message after its number.
    pub suffix: Vec<u8>,
    /// The number of the next message to send.
    pub sent: u64,
    /// The number of the next message to arrive in order.
    pub expected: u64,
    /// Numbers below `expected` that have not arrived.
    pub missing: BTreeSet<u64>,
    /// The times when the messages from `expected` on were sent.
    pub sent_at: VecDeque<Instant>,
}

impl Relay {
    pub fn new(flags: &Flags) -> Relay {
        Relay {
            dialect: flags.dialect,
            payload: flags.payload,
            pairs: (0..flags.pairs).map(|_| Pair::default()).collect(),
            in_flight: flags.in_flight,
            is_running: false,
            registered: 0,
            received: 0,
            results: Results::new(),
        }
    }

    /// Makes this connection the sender of a pair.
    fn set_sender(&mut self, index: usize, slot: usize, partner: &str) {
        // The number has up to eight digits.
        const NUMBER: &str = "00000000";
        let rest = self.payload.saturating_sub(r#"{"n":00000000,"candidate":""}"#.len());
        let candidate = format!(r#"{{"n":{NUMBER},"candidate":"{}"}}"#, payload(rest));
        let message = match self.dialect {
            Dialect::Noroshi => format!(
                r#"{{"type":"candidateAdd","id":"relay-{index}-a","target_id":"relay-{index}-b","candidate":{candidate}}}"#
            ),
            dialect => dialect.candidate(partner, &candidate),
        };
        let (prefix, suffix) = message.split_once(NUMBER).expect("it has the number");
        let pair = &mut self.pairs[index];
        pair.sender = slot;
        pair.prefix = prefix.into();
        pair.suffix = suffix.into();
    }

    pub fn send(&mut self, net: &mut Net, pair: usize) {
        let pair = &mut self.pairs[pair];
        let number = pair.sent.to_string();
        net.send(pair.sender, OPCODE_TEXT, &[&pair.prefix, number.as_bytes(), &pair.suffix]);
        pair.sent += 1;
        pair.sent_at.push_back(Instant::now());
    }

    pub fn on_received(&mut self, net: &mut Net, index: usize, number: u64) {
        let pair = &mut self.pairs[index];
        if number >= pair.sent || (number < pair.expected && !pair.missing.remove(&number)) {
            self.results.duplicates += 1;
            return;
        }
        if number < pair.expected {
            self.results.reordered += 1;
        } else {
            let skipped = number - pair.expected;
            pair.missing.extend(pair.expected..number);
            pair.expected = number + 1;
            let sent_at = pair.sent_at.drain(..=skipped as usize).next_back().expect("the message was sent");
            self.results.record_latency(sent_at.elapsed());
        }
        self.received += 1;
        if self.is_running {
            self.send(net, index);
        }
    }

    pub fn count_lost(&mut self) {
        self.results.lost =
            self.pairs.iter().map(|pair| pair.sent - pair.expected + pair.missing.len() as u64).sum();
    }
}

impl Mode for Relay {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        if self.registered == 2 * self.pairs.len() {
            self.is_running = true;
            for pair in 0..self.pairs.len() {
                // Lost messages are not sent again; new ones take their place.
                for _ in 0..self.in_flight {
                    self.send(net, pair);
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.is_running = false;
    }

    fn is_done(&self) -> bool {
        self.registered == 2 * self.pairs.len()
            && self.pairs.iter().all(|pair| pair.sent == pair.expected && pair.missing.is_empty())
    }

    fn units(&self) -> u64 {
        self.received
    }

    fn on_event(&mut self, net: &mut Net, slot: usize, index: usize, event: Event) -> io::Result<()> {
        let pair = index / 2;
        let is_sender = index.is_multiple_of(2);
        match event {
            Event::Opened => {
                if is_sender && self.dialect == Dialect::Noroshi {
                    self.set_sender(pair, slot, "");
                }
                let id = format!("relay-{pair}-{}", if is_sender { 'a' } else { 'b' });
                self.dialect.register(net, slot, &format!("relay-{pair}"), &id);
            }
            Event::Text(text) if self.dialect.answer_ping(net, slot, text) => {}
            Event::Text(text) if self.registered < 2 * self.pairs.len() => {
                if self.dialect == Dialect::Noroshi {
                    self.registered += 1;
                } else if let Some(partner) = self.dialect.new_partner(text) {
                    // Both peers are in the room. The one that learns of the other one is the sender.
                    self.set_sender(pair, slot, &partner);
                    self.registered += 2;
                }
            }
            Event::Text(text) => match parse_number(text) {
                Some(number) => self.on_received(net, pair, number),
                None => self.results.count_error(text),
            },
            Event::Pong => {}
            Event::Closed => return Err(server_closed()),
        }
        Ok(())
    }

    fn results(&mut self) -> &mut Results {
        self.count_lost();
        &mut self.results
    }

    fn registered(&self) -> usize {
        self.registered
    }
}

/// Returns a payload of this size.
///
/// A candidate is one line. An SDP has many lines, which end in escape sequences in JSON.
pub fn payload(bytes: usize) -> String {
    const LINE: &str = r"a=rtpmap:111 opus/48000/2\r\n";
    let lines = if bytes < 1_000 { 0 } else { bytes / LINE.len() };
    LINE.repeat(lines) + &"x".repeat(bytes - lines * LINE.len())
}

/// Returns the number in a relayed candidate.
///
/// A signaling server sends the candidate inside a string; a bare relay forwards it unchanged.
pub fn parse_number(text: &[u8]) -> Option<u64> {
    let find_end_of = |key: &[u8]| {
        let start = text.windows(key.len()).position(|window| window == key)?;
        Some(start + key.len())
    };
    let start = find_end_of(br#"\"n\":"#).or_else(|| find_end_of(br#""n":"#))?;
    let digits = text[start..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.map(|digit| u64::from(digit - b'0')).reduce(|number, digit| 10 * number + digit)
}
