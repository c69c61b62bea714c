//! The common part of the models: rate limit, probes, queues and output.
//!
//! It is written from `scripts/deploy/README.md`, for clarity rather than speed: lists instead of tables, credits counted
//! one by one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use noroshi::http::token::{Claims, TokenError};
use noroshi::protocol::{CloseCause, Conn, Target};
use noroshi::rate_limit::Verdict;
use noroshi_test_support::input::Input;

/// An effect, reduced to what is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Text(String),
    Ping,
    Pause,
    Resume,
    Close(CloseCause),
    /// The room.
    Registered(String),
    /// The room, of several.
    Entered(String),
    LimitReached(&'static str),
    /// The room and the connection's id in it.
    Left(String, Option<String>),
    TokenRefused(TokenError),
}

/// A line of `/rooms`: room, id and state.
pub type RoomMember = (String, Option<String>, &'static str);

/// The rules of one protocol, as a naive model.
pub trait Rules {
    fn context(&mut self) -> &mut Context;
    fn connected(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>);
    fn text(&mut self, conn: Conn, text: &str);
    fn binary(&mut self, conn: Conn, bytes: &[u8]);
    /// Handles a message that was dropped by the rate limit.
    fn dropped(&mut self, conn: Conn, notify: bool);
    fn alive(&mut self, conn: Conn);
    fn silent(&mut self, conn: Conn);
    fn disconnected(&mut self, conn: Conn);
    /// Handles one expired timer of the protocol.
    fn timer(&mut self);
    fn timer_due(&self) -> Option<Duration>;
    fn has_capacity(&self, _target: &Target) -> bool {
        true
    }
    /// Returns whether a new peer of this target may find other peers, if the protocol can tell.
    fn room_exists(&self, _target: &Target) -> bool {
        true
    }
    fn member(&self, conn: Conn) -> Option<RoomMember>;
    /// Returns all memberships of a connection that is open, sorted.
    fn members(&self, conn: Conn) -> Vec<RoomMember> {
        vec![self.member(conn).expect("the connection is known")]
    }
    /// Returns the numbers of peers and rooms.
    fn counts(&self) -> (usize, usize);
    /// Returns the number of messages to members of rooms, if the protocol counts them.
    fn deliveries(&self) -> Option<u64> {
        None
    }
    /// Returns the numbers that only this protocol has in the metrics.
    fn gauges(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }
    /// Learns from the effects of the server what only the server knows.
    fn learn(&mut self, _outputs: &[(Conn, Output)]) {}
    /// Returns the bytes of text stored for peers. The server reserves at least these, and nothing if there are none.
    fn stored_bytes(&self) -> usize {
        0
    }
}

/// The state that all models share.
pub struct Context {
    pub now: Duration,
    pub outputs: Vec<(Conn, Output)>,
    /// Further messages that the queue of a peer accepts. Queues that are not listed accept any number.
    pub room_in_queue: BTreeMap<Conn, usize>,
    /// The server's decisions about the memory reservations of this input, in order.
    pub grants: VecDeque<bool>,
    /// Ids that the server has assigned.
    pub names: BTreeMap<Conn, String>,
    pub messages: BTreeMap<&'static str, u64>,
    pub errors: BTreeMap<&'static str, u64>,
    /// Running probes with their deadlines.
    pub probes: Vec<(Duration, Conn)>,
    /// Credits per second. 0: no limit.
    rate: u32,
    buckets: BTreeMap<Conn, Bucket>,
}

/// The credits of one connection.
struct Bucket {
    /// In billionths, so that each nanosecond adds a whole number.
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

/// Returns the credits for this many bytes: one for every 4 KiB or part of it.
pub fn credits_for(bytes: usize) -> usize {
    let mut credits = 1;
    while credits * 4096 < bytes {
        credits += 1;
    }
    credits
}

/// Returns the credits for sending a text to this many peers: one for every 64 deliveries or part of it, times those
/// for the text's bytes.
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

    /// Forwards all of these messages or none.
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

    /// Returns whether the server has granted the reservation for the next stored value.
    pub fn reserve(&mut self) -> bool {
        self.grants.pop_front().expect("the server reserves memory for this")
    }

    pub fn probe(&mut self, conn: Conn) {
        self.emit(conn, Output::Ping);
        self.probes.push((self.now + Duration::from_secs(5), conn));
    }

    /// Ends a probe. Returns whether it was running.
    pub fn end_probe(&mut self, conn: Conn) -> bool {
        let before = self.probes.len();
        self.probes.retain(|(_, probed)| *probed != conn);
        self.probes.len() < before
    }

    pub fn close(&mut self, conn: Conn, why: CloseCause) {
        self.end_probe(conn);
        self.emit(conn, Output::Close(why));
    }

    /// Charges a message with a total cost of `cost`, of which `paid` is already charged. The maximum cost is a full
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
                return Verdict::Drop { notify: true };
            }
        };
        violation.last = now;
        if now >= violation.began + Duration::from_secs(5) {
            return Verdict::Close;
        }
        if now < violation.notified_at + Duration::from_secs(1) {
            return Verdict::Drop { notify: false };
        }
        violation.notified_at = now;
        Verdict::Drop { notify: true }
    }
}

/// Handles an input as the dispatcher does before the protocol.
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
    }
}

/// Charges a frame that is not a message.
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
        Verdict::Drop { notify } => rules.dropped(conn, notify),
        Verdict::Close => {
            rules.context().close(conn, CloseCause::RateLimited);
            rules.disconnected(conn);
        }
    }
    false
}
