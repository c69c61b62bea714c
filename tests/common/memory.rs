//! All protocols and a recording outbox, without sockets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::RandomState;
use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets, TokenError};
use noroshi::limits::HOLD_TIME;
use noroshi::memory_budget::{Budget, Reservation};
use noroshi::protocol::{CloseCause, Conn, Descriptor, Member, Outbox, Target, Times, TokenPlace};
use noroshi::protocols::{self, Destination, Dispatcher};

use super::input::Input;
use super::transcript::{HttpResponse, Received, Transport};

/// Returns a dispatcher with all protocols of a configuration.
pub fn dispatcher(config: &Config) -> Dispatcher {
    Dispatcher::new(protocols::ALL, config, &RandomState::new())
}

/// Returns a target in noroshi's own protocol.
pub fn target(room: &str) -> Target {
    Target { protocol: &protocols::noroshi::DESCRIPTOR, room: room.to_owned(), query: Query::default() }
}

/// Returns the numbers of peers and rooms, and when the next timer is due.
pub fn remaining_state(dispatcher: &Dispatcher) -> (usize, usize, Option<Duration>) {
    let sum = dispatcher.each().map(|(_, protocol)| protocol.counts(std::time::Duration::ZERO));
    let (peers, rooms) = sum.fold((0, 0), |(peers, rooms), it| (peers + it.peers, rooms + it.rooms));
    (peers, rooms, dispatcher.next_timer())
}

/// Returns whether a protocol may hold messages of senders that have left.
pub fn holds_messages_of_departed_senders(dispatcher: &Dispatcher) -> bool {
    dispatcher.each().any(|(name, _)| name == protocols::peerjs::DESCRIPTOR.endpoint.name)
}

/// Named peers connected to a dispatcher in memory. They answer pings immediately unless they are stalled. Events have
/// the order of the server: the messages of a read, then the liveness signal. Messages of a paused connection are
/// delivered when it is resumed.
pub struct Memory {
    pub dispatcher: Dispatcher,
    pub now: Duration,
    /// The Unix time at which `now` is zero.
    pub epoch: Duration,
    pub outbox: Recorder,
    names: BTreeMap<String, Conn>,
    received: BTreeMap<Conn, VecDeque<Received>>,
    stalled: BTreeSet<Conn>,
    /// Paused connections with the messages that they have sent since.
    paused: BTreeMap<Conn, VecDeque<Message>>,
    /// The connections of protocols that end them without a Close frame.
    without_close_frame: BTreeSet<Conn>,
    /// The secrets of tokens in requests. `None`: no tokens are required.
    token_secrets: Option<Secrets>,
    /// Resumed connections with the messages that are still to be delivered.
    resumed: VecDeque<(Conn, VecDeque<Message>)>,
    connections: u64,
}

/// A message and whether it is binary.
type Message = (Vec<u8>, bool);

/// Records all effects. The outbound queues of connections in `full` accept no forwarded message.
pub struct Recorder {
    pub effects: VecDeque<Recorded>,
    pub full: BTreeSet<Conn>,
    /// Whether every reservation fails.
    pub out_of_memory: bool,
    pub budget: Budget,
    /// How many connections protocols have refused because of their tokens, by reason.
    pub refused_tokens: BTreeMap<&'static str, u64>,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            effects: VecDeque::new(),
            full: BTreeSet::new(),
            out_of_memory: false,
            budget: Budget::new(&Config::default()),
            refused_tokens: BTreeMap::new(),
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Recorded {
    Send(Conn, String),
    Ping(Conn),
    PauseReading(Conn),
    ResumeReading(Conn),
    Close(Conn, CloseCause),
    Registered(Conn),
    Entered(Conn, String),
    LimitReached(Conn, &'static str),
    Left(Conn),
}

impl Outbox for Recorder {
    fn can_queue(&mut self, to: Conn, _: &[String]) -> bool {
        !self.full.contains(&to)
    }

    fn push_forwarded(&mut self, to: Conn, text: String) {
        self.effects.push_back(Recorded::Send(to, text));
    }

    fn broadcast(&mut self, to: &mut dyn Iterator<Item = Conn>, text: &str) -> usize {
        let mut rejected = 0;
        for conn in to {
            if self.full.contains(&conn) {
                rejected += 1;
            } else {
                self.effects.push_back(Recorded::Send(conn, text.to_owned()));
            }
        }
        rejected
    }

    fn is_congested(&self, to: Conn) -> bool {
        self.full.contains(&to)
    }

    fn has_unread_input(&self, _: Conn) -> bool {
        false
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        if self.out_of_memory { None } else { self.budget.reserve(bytes) }
    }

    fn send(&mut self, to: Conn, text: String) {
        self.effects.push_back(Recorded::Send(to, text));
    }

    fn send_binary(&mut self, _: Conn, _: &[u8]) {
        unreachable!("no protocol sends binary messages");
    }

    fn ping(&mut self, to: Conn) {
        self.effects.push_back(Recorded::Ping(to));
    }

    fn pause_reading(&mut self, conn: Conn) {
        self.effects.push_back(Recorded::PauseReading(conn));
    }

    fn resume_reading(&mut self, conn: Conn) {
        self.effects.push_back(Recorded::ResumeReading(conn));
    }

    fn close(&mut self, conn: Conn, why: CloseCause) {
        self.effects.push_back(Recorded::Close(conn, why));
    }

    fn record_registration(&mut self, conn: Conn, _: &str, _: &str) {
        self.effects.push_back(Recorded::Registered(conn));
    }

    fn record_entry(&mut self, conn: Conn, room: &str) {
        self.effects.push_back(Recorded::Entered(conn, room.to_owned()));
    }

    fn record_limit(&mut self, conn: Conn, limit: &'static str) {
        self.effects.push_back(Recorded::LimitReached(conn, limit));
    }

    fn record_refused_token(&mut self, _: Conn, error: TokenError) {
        *self.refused_tokens.entry(error.name()).or_default() += 1;
    }

    fn record_departure(&mut self, conn: Conn, _: &'static Descriptor, _: &Member<'_>, _: Option<usize>) {
        self.effects.push_back(Recorded::Left(conn));
    }
}

impl Memory {
    pub fn new(config: &Config) -> Memory {
        Memory {
            dispatcher: dispatcher(config),
            now: Duration::ZERO,
            epoch: Duration::ZERO,
            outbox: Recorder::default(),
            names: BTreeMap::new(),
            received: BTreeMap::new(),
            stalled: BTreeSet::new(),
            paused: BTreeMap::new(),
            without_close_frame: BTreeSet::new(),
            token_secrets: config.token_secrets.clone(),
            resumed: VecDeque::new(),
            connections: 0,
        }
    }

    pub fn conn(&self, peer: &str) -> Conn {
        self.names[peer]
    }

    /// Returns how often a message type or an error was counted.
    pub fn count(&self, name: &str) -> u64 {
        let counts = self.dispatcher.each().map(|(_, protocol)| protocol.counts(std::time::Duration::ZERO));
        let all = counts.flat_map(|counts| [counts.messages, counts.errors].concat());
        all.filter(|(it, _)| *it == name).map(|(_, count)| count).sum()
    }

    pub fn reserved(&self) -> usize {
        self.outbox.budget.reserved()
    }

    /// Passes an input to the dispatcher.
    pub fn handle(&mut self, input: Input) {
        let times = Times { now: self.now, wall: self.epoch + self.now };
        input.deliver(&mut self.dispatcher, times, &mut self.outbox);
    }

    /// Passes an input to the dispatcher and delivers all resulting output.
    pub fn input(&mut self, input: Input) {
        if let Input::Disconnected(conn) = input {
            self.paused.remove(&conn);
            self.resumed.retain(|(resumed, _)| *resumed != conn);
        }
        self.handle(input);
        self.dispatcher.check();
        while let Some(effect) = self.outbox.effects.pop_front() {
            match effect {
                Recorded::Send(to, text) => self.deliver_output(to, Received::Text(text)),
                Recorded::Ping(to) if self.stalled.contains(&to) => {}
                Recorded::Ping(to) => self.input(Input::Alive(to)),
                Recorded::PauseReading(conn) => _ = self.paused.insert(conn, VecDeque::new()),
                Recorded::ResumeReading(conn) => {
                    let sent = self.paused.remove(&conn).expect("only paused connections are resumed");
                    self.resumed.push_back((conn, sent));
                }
                Recorded::Close(to, why) => {
                    let code = match why {
                        _ if self.without_close_frame.contains(&to) => 1006,
                        CloseCause::Replaced => 4000,
                        CloseCause::RateLimited => 1008,
                        CloseCause::Finished => 1000,
                    };
                    self.deliver_output(to, Received::Closed(code));
                    self.input(Input::Disconnected(to));
                }
                Recorded::Registered(_)
                | Recorded::Entered(..)
                | Recorded::LimitReached(..)
                | Recorded::Left(_) => {}
            }
        }
        while let Some((conn, sent)) = self.resumed.pop_front() {
            self.deliver(conn, sent);
        }
    }

    /// Handles messages of one connection in order until it is paused.
    fn deliver(&mut self, conn: Conn, mut sent: VecDeque<Message>) {
        while let Some((text, is_binary)) = sent.pop_front() {
            match std::str::from_utf8(&text) {
                Ok(text) if !is_binary => self.input(Input::Text(conn, text)),
                _ => self.input(Input::Binary(conn, &text)),
            }
            if let Some(waiting) = self.paused.get_mut(&conn) {
                waiting.extend(sent);
                break;
            }
        }
        self.input(Input::Alive(conn));
    }

    /// Returns the claims of the token in the query, as the server does for a protocol with tokens in the request.
    fn verify_token(&self, target: &Target) -> Option<Claims> {
        let secrets = self.token_secrets.as_ref()?;
        if target.protocol.token_place != TokenPlace::Request {
            return None;
        }
        let token = target.query.values("token").next().expect("a token").expect("UTF-8");
        let claims = secrets.verify(&token, self.epoch + self.now).expect("a valid token");
        assert!(claims.allows(&target.room), "the token permits the room");
        Some(claims)
    }

    fn connect(&mut self, peer: &str, target: &Target, claims: Option<&Claims>) {
        let conn = Conn::new(self.connections, self.connections as usize);
        self.connections += 1;
        self.names.insert(peer.to_owned(), conn);
        self.received.insert(conn, VecDeque::new());
        if target.protocol.endpoint.ends_without_close_frame {
            self.without_close_frame.insert(conn);
        }
        self.input(Input::Connected(conn, target, claims));
    }

    fn deliver_output(&mut self, peer: Conn, received: Received) {
        if !self.stalled.contains(&peer) {
            self.received.get_mut(&peer).expect("only connected peers receive messages").push_back(received);
        }
    }
}

impl Transport for Memory {
    fn open(&mut self, peer: &str, room: &str) {
        self.connect(peer, &target(room), None);
    }

    fn open_with_token(&mut self, peer: &str, room: &str, claims: &Claims) {
        self.connect(peer, &target(room), Some(claims));
    }

    fn open_at(&mut self, peer: &str, path: &str) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let destination = self.dispatcher.destination(path, &Query::new(query));
        let Some(Destination::WebSocket(target)) = destination else { panic!("{path}: {destination:?}") };
        assert!(self.dispatcher.has_capacity(&target));
        let claims = self.verify_token(&target);
        self.connect(peer, &target, claims.as_ref());
    }

    /// There is no HTTP without sockets.
    fn status(&mut self, _: &str, _: bool) -> Option<u16> {
        None
    }

    fn request_resource(&mut self, method: &str, path: &str, _: Option<&str>) -> Option<HttpResponse> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = Query::new(query);
        let Some(Destination::Resource(protocol)) = self.dispatcher.destination(path, &query) else {
            return None;
        };
        if method != "GET" {
            return None;
        }
        let resource = self.dispatcher.respond(protocol, path, &query)?;
        Some(HttpResponse { status: resource.status, headers: None, body: resource.body })
    }

    fn send(&mut self, peer: &str, text: &[u8], binary: bool) {
        let conn = self.conn(peer);
        let message = (text.to_vec(), binary);
        match self.paused.get_mut(&conn) {
            Some(waiting) => waiting.push_back(message),
            None => self.deliver(conn, [message].into()),
        }
    }

    fn stop_reading(&mut self, peer: &str) {
        self.stalled.insert(self.conn(peer));
    }

    fn reset(&mut self, peer: &str) {
        self.close(peer);
    }

    fn close(&mut self, peer: &str) {
        self.input(Input::Disconnected(self.conn(peer)));
    }

    fn advance_by(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.dispatcher.next_timer().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.input(Input::Time);
        }
        self.now = until;
    }

    fn next_received(&mut self, peer: &str) -> Option<Received> {
        self.received.get_mut(&self.names[peer])?.pop_front()
    }

    fn finish(mut self: Box<Self>) {
        for conn in self.received.keys().copied().collect::<Vec<_>>() {
            self.input(Input::Disconnected(conn));
        }
        if holds_messages_of_departed_senders(&self.dispatcher) {
            self.advance_by(HOLD_TIME);
        }
        assert_eq!(remaining_state(&self.dispatcher), (0, 0, None));
        assert_eq!(self.reserved(), 0, "all memory is released");
    }
}
