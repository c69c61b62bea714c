//! The part of the models that all protocols share: the rate limit, probes, queues and what was said.
//!
//! It is written from the README, for clarity and not for speed: lists instead of tables, credits counted one by one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use noroshi::protocol::{Close, Conn, Input, Target};
use noroshi::rate_limit::Verdict;
use noroshi::token::Claims;

/// An effect, as far as it is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Text(String),
    Ping,
    Pause,
    Resume,
    Close(Close),
    /// The room.
    Registered(String),
    /// The room, and the id that the connection had there.
    Left(String, Option<String>),
}

/// What the operator sees of a connection: its room, its id and its state.
pub type RoomMember = (String, Option<String>, &'static str);

/// The rules of one protocol, written down naively.
pub trait Rules {
    fn context(&mut self) -> &mut Context;
    fn connected(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>);
    fn text(&mut self, conn: Conn, text: &str);
    fn binary(&mut self, conn: Conn, bytes: &[u8]);
    /// Its message was dropped because it is over the rate.
    fn dropped(&mut self, conn: Conn, tell: bool);
    fn alive(&mut self, conn: Conn);
    fn silent(&mut self, conn: Conn);
    fn disconnected(&mut self, conn: Conn);
    /// One timer of the protocol is due.
    fn timer(&mut self);
    fn timer_due(&self) -> Option<Duration>;
    fn has_place(&self, _target: &Target) -> bool {
        true
    }
    /// Whether a newcomer to this target may meet somebody, if the protocol can tell.
    fn knows_room(&self, _target: &Target) -> bool {
        true
    }
    fn seen(&self, conn: Conn) -> Option<RoomMember>;
    /// Peers and rooms.
    fn counts(&self) -> (usize, usize);
    /// Bytes of text that are stored for peers. The server reserves at least these, and nothing if there are none.
    fn stored_bytes(&self) -> usize {
        0
    }
}

/// What a protocol works with.
pub struct Context {
    pub now: Duration,
    pub outputs: Vec<(Conn, Output)>,
    /// How many further messages the queue of a peer takes. Queues that are not listed take any number.
    pub room_in_queue: BTreeMap<Conn, usize>,
    /// Whether memory was granted, for each reservation of this input. The server decides that; the model says when it is
    /// asked.
    pub grants: VecDeque<bool>,
    /// The ids that the server gave to connections.
    pub names: BTreeMap<Conn, String>,
    pub messages: BTreeMap<&'static str, u64>,
    pub errors: BTreeMap<&'static str, u64>,
    /// Who is probed, and until when.
    pub probes: Vec<(Duration, Conn)>,
    /// Credits a second; 0: no limit.
    rate: u32,
    buckets: BTreeMap<Conn, Bucket>,
}

/// The credits of one connection.
struct Bucket {
    /// In billionths, so that every nanosecond adds a whole number of them.
    credits: u128,
    counted_at: Duration,
    violation: Option<RateViolation>,
}

struct RateViolation {
    began: Duration,
    last: Duration,
    notified_at: Duration,
}

const NANOCREDITS: u128 = 1_000_000_000;
const BURST_SECONDS: u128 = 10;

/// Credits for this many bytes: one for every 4 KiB begun.
pub fn credits_for(bytes: usize) -> usize {
    let mut credits = 1;
    while credits * 4096 < bytes {
        credits += 1;
    }
    credits
}

/// Credits for telling this many peers a text: one for every 64 deliveries begun, times every 4 KiB begun of the text.
pub fn credits_for_deliveries(peers: usize, bytes: usize) -> usize {
    let mut groups = 0;
    while groups * 64 < peers {
        groups += 1;
    }
    groups * credits_for(bytes)
}

impl Context {
    pub fn new(rate: u32) -> Context {
        Context {
            now: Duration::ZERO,
            outputs: Vec::new(),
            room_in_queue: BTreeMap::new(),
            grants: VecDeque::new(),
            names: BTreeMap::new(),
            messages: BTreeMap::new(),
            errors: BTreeMap::new(),
            probes: Vec::new(),
            rate,
            buckets: BTreeMap::new(),
        }
    }

    pub fn emit(&mut self, to: Conn, output: Output) {
        self.outputs.push((to, output));
    }

    /// Passes on all of these messages, or none.
    pub fn forward(&mut self, to: Conn, texts: Vec<String>) -> bool {
        if let Some(room) = self.room_in_queue.get_mut(&to) {
            if *room < texts.len() {
                return false;
            }
            *room -= texts.len();
        }
        for text in texts {
            self.emit(to, Output::Text(text));
        }
        true
    }

    pub fn count_message(&mut self, name: &'static str) {
        *self.messages.entry(name).or_default() += 1;
    }

    pub fn count_error(&mut self, name: &'static str) {
        *self.errors.entry(name).or_default() += 1;
    }

    /// Asks the server whether it granted the memory for what is about to be stored.
    pub fn reserve(&mut self) -> bool {
        self.grants.pop_front().expect("the server reserves memory for this")
    }

    pub fn probe(&mut self, conn: Conn) {
        self.emit(conn, Output::Ping);
        self.probes.push((self.now + Duration::from_secs(5), conn));
    }

    /// Returns whether a probe was running.
    pub fn end_probe(&mut self, conn: Conn) -> bool {
        let before = self.probes.len();
        self.probes.retain(|(_, probed)| *probed != conn);
        self.probes.len() < before
    }

    pub fn close(&mut self, conn: Conn, why: Close) {
        self.end_probe(conn);
        self.emit(conn, Output::Close(why));
    }

    /// Charges a message that costs `cost` in all, and of which `paid` was charged before. Nothing costs more than a full
    /// bucket.
    pub fn pay(&mut self, conn: Conn, cost: usize, paid: usize) -> Verdict {
        if self.rate == 0 {
            return Verdict::Pass;
        }
        let full = u128::from(self.rate) * BURST_SECONDS * NANOCREDITS;
        let cost = (cost as u128 * NANOCREDITS).min(full);
        let paid = (paid as u128 * NANOCREDITS).min(full);
        let due = cost.saturating_sub(paid);
        let bucket = self.buckets.get_mut(&conn).expect("every connection has a bucket");
        let elapsed = (self.now - bucket.counted_at).as_nanos();
        bucket.credits = (bucket.credits + elapsed * u128::from(self.rate)).min(full);
        bucket.counted_at = self.now;
        if due <= bucket.credits {
            bucket.credits -= due;
            return Verdict::Pass;
        }
        let now = self.now;
        let violation = match &mut bucket.violation {
            Some(violation) if now < violation.last + Duration::from_secs(2) => violation,
            _ => {
                bucket.violation = Some(RateViolation { began: now, last: now, notified_at: now });
                return Verdict::Drop { tell: true };
            }
        };
        violation.last = now;
        if now >= violation.began + Duration::from_secs(5) {
            return Verdict::Close;
        }
        if now < violation.notified_at + Duration::from_secs(1) {
            return Verdict::Drop { tell: false };
        }
        violation.notified_at = now;
        Verdict::Drop { tell: true }
    }
}

/// Handles an input as the server does before a protocol sees it.
pub fn handle(rules: &mut impl Rules, input: Input) {
    match input {
        Input::Connected(conn, target, claims) => {
            let context = rules.context();
            let credits = u128::from(context.rate) * BURST_SECONDS * NANOCREDITS;
            let bucket = Bucket { credits, counted_at: context.now, violation: None };
            context.buckets.insert(conn, bucket);
            rules.connected(conn, target, claims);
        }
        Input::Text(conn, text) => {
            if charge(rules, conn, credits_for(text.len())) {
                rules.text(conn, text);
            }
        }
        Input::Binary(conn, bytes) => {
            if charge(rules, conn, credits_for(bytes.len())) {
                rules.binary(conn, bytes);
            }
        }
        Input::Alive(conn) => {
            if rules.context().end_probe(conn) {
                rules.alive(conn);
            }
        }
        Input::Disconnected(conn) => {
            rules.context().end_probe(conn);
            rules.disconnected(conn);
        }
        Input::Time => {
            while let Some(due) = due_next(rules).filter(|due| *due <= rules.context().now) {
                if rules.timer_due() == Some(due) {
                    rules.timer();
                    continue;
                }
                let probes = &mut rules.context().probes;
                probes.sort();
                let (_, conn) = probes.remove(0);
                rules.silent(conn);
            }
        }
        Input::Dropped { .. } | Input::Silent(_) => unreachable!("these come from the dispatcher"),
    }
}

/// Charges a frame that is no message.
pub fn handle_frame(rules: &mut impl Rules, conn: Conn) -> bool {
    charge(rules, conn, 1)
}

pub fn due_next(rules: &mut impl Rules) -> Option<Duration> {
    let probe = rules.context().probes.iter().map(|(due, _)| *due).min();
    rules.timer_due().into_iter().chain(probe).min()
}

fn charge(rules: &mut impl Rules, conn: Conn, credits: usize) -> bool {
    match rules.context().pay(conn, credits, 0) {
        Verdict::Pass => return true,
        Verdict::Drop { tell } => rules.dropped(conn, tell),
        Verdict::Close => {
            rules.context().close(conn, Close::RateLimited);
            rules.disconnected(conn);
        }
    }
    false
}
