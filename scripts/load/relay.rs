//! Modes relay: candidates or SDPs from one peer to another.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::Instant;

use crate::flags::Flags;
use crate::modes::{Mode, Tally, register};
use crate::net::{Happened, Net, gone};

/// Pairs, in each of which one sends numbered candidates to the other.
pub struct Relay {
    pub pairs: Vec<Pair>,
    pub in_flight: usize,
    pub running: bool,
    pub registered: usize,
    pub received: u64,
    pub tally: Tally,
}

#[derive(Default)]
pub struct Pair {
    pub sender: usize,
    /// The message, before and after the number.
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    pub sent: u64,
    pub expected: u64,
    pub missing: BTreeSet<u64>,
    /// When those from `expected` on were sent.
    pub sent_at: VecDeque<Instant>,
}

impl Relay {
    pub fn new(flags: &Flags) -> Relay {
        let pairs = (0..flags.pairs).map(|i| {
            let before = format!(
                r#"{{"type":"candidateAdd","id":"relay-{i}-a","target_id":"relay-{i}-b","candidate":{{"n":"#
            );
            // The number has up to eight digits.
            let rest = flags.payload.saturating_sub(r#"{"n":00000000,"candidate":""}"#.len());
            let after = format!(r#","candidate":"{}"}}}}"#, payload(rest));
            Pair { before: before.into_bytes(), after: after.into_bytes(), ..Pair::default() }
        });
        Relay {
            pairs: pairs.collect(),
            in_flight: flags.in_flight,
            running: false,
            registered: 0,
            received: 0,
            tally: Tally::new(),
        }
    }

    pub fn send(&mut self, net: &mut Net, pair: usize) {
        let pair = &mut self.pairs[pair];
        let number = pair.sent.to_string();
        net.send(pair.sender, 1, &[&pair.before, number.as_bytes(), &pair.after]);
        pair.sent += 1;
        pair.sent_at.push_back(Instant::now());
    }

    pub fn received(&mut self, net: &mut Net, index: usize, number: u64) {
        let pair = &mut self.pairs[index];
        if number >= pair.sent || (number < pair.expected && !pair.missing.remove(&number)) {
            self.tally.doubled += 1;
            return;
        }
        if number < pair.expected {
            self.tally.disordered += 1;
        } else {
            let skipped = number - pair.expected;
            pair.missing.extend(pair.expected..number);
            pair.expected = number + 1;
            let sent_at = pair.sent_at.drain(..=skipped as usize).next_back().expect("it was sent");
            self.tally.took(sent_at.elapsed());
        }
        self.received += 1;
        if self.running {
            self.send(net, index);
        }
    }

    pub fn count_lost(&mut self) {
        self.tally.lost =
            self.pairs.iter().map(|pair| pair.sent - pair.expected + pair.missing.len() as u64).sum();
    }
}

impl Mode for Relay {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        if self.registered == 2 * self.pairs.len() {
            self.running = true;
            for pair in 0..self.pairs.len() {
                // What was lost is not sent again.
                for _ in 0..self.in_flight {
                    self.send(net, pair);
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.running = false;
    }

    fn is_done(&self) -> bool {
        self.registered == 2 * self.pairs.len()
            && self.pairs.iter().all(|pair| pair.sent == pair.expected && pair.missing.is_empty())
    }

    fn units(&self) -> u64 {
        self.received
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        let (pair, is_sender) = (name / 2, name.is_multiple_of(2));
        match what {
            Happened::Opened => {
                if is_sender {
                    self.pairs[pair].sender = slot;
                }
                register(net, slot, &format!("relay-{pair}-{}", if is_sender { 'a' } else { 'b' }));
            }
            Happened::Text(_) if self.registered < 2 * self.pairs.len() => self.registered += 1,
            Happened::Text(text) => match number(text) {
                Some(number) => self.received(net, pair, number),
                None => {
                    self.tally.error(text);
                }
            },
            Happened::Pong => {}
            Happened::Closed => return Err(gone()),
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        self.count_lost();
        &mut self.tally
    }

    fn registered(&self) -> usize {
        self.registered
    }
}

/// What a message carries: a candidate is one line, an SDP has many, whose ends are escape sequences in JSON.
pub fn payload(bytes: usize) -> String {
    const LINE: &str = r"a=rtpmap:111 opus/48000/2\r\n";
    let lines = if bytes < 1_000 { 0 } else { bytes / LINE.len() };
    LINE.repeat(lines) + &"x".repeat(bytes - lines * LINE.len())
}

/// The number in a relayed candidate: inside a string from a signaling server, as it was from a bare relay.
pub fn number(text: &[u8]) -> Option<u64> {
    let after =
        |key: &[u8]| text.windows(key.len()).position(|window| window == key).map(|at| at + key.len());
    let at = after(br#"\"n\":"#).or_else(|| after(br#""n":"#))?;
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.map(|digit| u64::from(digit - b'0')).reduce(|number, digit| 10 * number + digit)
}
