//! Passes the same input to a protocol and its model, and compares all effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::hash::RandomState;
use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::token::{Claims, TokenError};
use noroshi::limits::{BASE_BYTES, HOLD_TIME};
use noroshi::memory_budget::{Budget, Reservation};
use noroshi::protocol::{CloseCause, Conn, Descriptor, Member, Outbox, Target, Times};
use noroshi::protocols::Dispatcher;
use noroshi_test_support::input::Input;

use super::context::{self, Output, RoomMember, Rules};

/// Input that is read byte by byte.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn next(&mut self) -> Option<u8> {
        self.0.split_off_first().copied()
    }

    /// Takes up to `length` bytes.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let length = length.min(self.0.len());
        self.0.split_off(..length).unwrap_or_default()
    }
}

/// How often a message is sent, and the pause after each time.
#[derive(Clone, Copy)]
pub struct Repetition {
    times: u8,
    pause: Duration,
}

impl Repetition {
    /// Returns a repetition of fewer than 16 times with pauses of at most 3.15 s.
    pub fn next(bytes: &mut Bytes) -> Option<Repetition> {
        let times = bytes.next()? % 16;
        let pause = Duration::from_millis(50 * u64::from(bytes.next()? % 64));
        Some(Repetition { times, pause })
    }
}

/// One step: a number that selects the event, and the slot of a connection.
#[derive(Clone, Copy)]
pub struct Step {
    pub event: u8,
    pub selector: usize,
    pub slot: usize,
    pub conn: Option<Conn>,
}

/// Maximum steps of one input. More steps find nothing new.
pub const STEPS_MAX: usize = 400;

const CHECKED_ALWAYS_MAX: usize = 24;
const CROWD_CHECKED_EVERY: usize = 16;

pub struct World<R> {
    pub rules: R,
    dispatcher: Dispatcher,
    outbox: RecordingOutbox,
    pub now: Duration,
    /// Open connections, by slot.
    peers: Vec<Option<Conn>>,
    /// Number of open connections.
    open: usize,
    /// Paused connections.
    paused: BTreeSet<Conn>,
    /// Normalizes texts of the server for the comparison.
    normalize: fn(String) -> String,
    connections: u64,
    inputs: usize,
}

/// Records effects, and rejects what exceeds queues and memory.
struct RecordingOutbox {
    effects: Vec<(Conn, Output)>,
    room_in_queue: BTreeMap<Conn, usize>,
    grants: VecDeque<bool>,
    names: BTreeMap<Conn, String>,
    budget: Budget,
}

impl Outbox for RecordingOutbox {
    fn can_queue(&mut self, to: Conn, texts: &[String]) -> bool {
        assert!(!texts.is_empty());
        let Some(room) = self.room_in_queue.get_mut(&to) else { return true };
        let fits = texts.len() <= *room;
        if fits {
            *room -= texts.len();
        }
        fits
    }

    fn push_forwarded(&mut self, to: Conn, text: String) {
        self.effects.push((to, Output::Text(text)));
    }

    fn broadcast(&mut self, to: &mut dyn Iterator<Item = Conn>, text: &str) -> usize {
        let mut rejected = 0;
        for conn in to {
            if self.can_queue(conn, &[text.to_owned()]) {
                self.push_forwarded(conn, text.to_owned());
            } else {
                rejected += 1;
            }
        }
        rejected
    }

    fn is_congested(&self, to: Conn) -> bool {
        self.room_in_queue.get(&to) == Some(&0)
    }

    fn has_unread_input(&self, _: Conn) -> bool {
        false
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        let reservation = self.budget.reserve(bytes);
        self.grants.push_back(reservation.is_some());
        reservation
    }

    fn send(&mut self, to: Conn, text: String) {
        self.effects.push((to, Output::Text(text)));
    }

    fn send_binary(&mut self, _: Conn, _: &[u8]) {
        unreachable!("these protocols send no bytes");
    }

    fn ping(&mut self, to: Conn) {
        self.effects.push((to, Output::Ping));
    }

    fn pause_reading(&mut self, conn: Conn) {
        self.effects.push((conn, Output::Pause));
    }

    fn resume_reading(&mut self, conn: Conn) {
        self.effects.push((conn, Output::Resume));
    }

    fn close(&mut self, conn: Conn, why: CloseCause) {
        self.effects.push((conn, Output::Close(why)));
    }

    fn record_registration(&mut self, conn: Conn, room: &str, id: &str) {
        let before = self.names.insert(conn, id.to_owned());
        assert_eq!(before, None, "a connection is registered once");
        self.effects.push((conn, Output::Registered(room.to_owned())));
    }

    fn record_entry(&mut self, conn: Conn, room: &str) {
        self.effects.push((conn, Output::Entered(room.to_owned())));
    }

    fn record_limit(&mut self, conn: Conn, limit: &'static str) {
        self.effects.push((conn, Output::LimitReached(limit)));
    }

    fn record_refused_token(&mut self, conn: Conn, error: TokenError) {
        self.effects.push((conn, Output::TokenRefused(error)));
    }

    fn record_departure(
        &mut self,
        conn: Conn,
        _: &'static Descriptor,
        member: &Member<'_>,
        _: Option<usize>,
    ) {
        let id = member.id.as_deref().map(str::to_owned);
        self.effects.push((conn, Output::Left(member.room.to_owned(), id)));
    }
}

/// Returns a configuration with this rate and this much memory for stored values.
pub fn config(rate_max: u32, memory_bytes: Option<usize>) -> Config {
    let memory_bytes_max = memory_bytes.map(|bytes| BASE_BYTES + bytes);
    Config { rate_max, memory_bytes_max, ..Config::default() }
}

impl<R: Rules> World<R> {
    pub fn new(config: &Config, protocol: &'static Descriptor, rules: R, slots: usize) -> World<R> {
        let mut config = config.clone();
        if !protocol.endpoint.is_always_on {
            config.mount(&protocol.endpoint, String::new());
        }
        let config = &config;
        World {
            rules,
            dispatcher: Dispatcher::new(&[protocol], config, &RandomState::new()),
            outbox: RecordingOutbox {
                effects: Vec::new(),
                room_in_queue: BTreeMap::new(),
                grants: VecDeque::new(),
                names: BTreeMap::new(),
                budget: Budget::new(config),
            },
            now: Duration::ZERO,
            peers: vec![None; slots],
            open: 0,
            paused: BTreeSet::new(),
            normalize: |text| text,
            connections: 0,
            inputs: 0,
        }
    }

    /// Sets the function that normalizes texts of the server.
    pub fn normalize(mut self, normalize: fn(String) -> String) -> World<R> {
        self.normalize = normalize;
        self
    }

    /// Reads the next step. `peers` is the number of slots.
    pub fn next_step(&self, bytes: &mut Bytes, peers: usize) -> Option<Step> {
        let event = bytes.next()? % 16;
        let selector = usize::from(bytes.next()?);
        let slot = selector % peers;
        Some(Step { event, selector, slot, conn: self.peers[slot] })
    }

    /// Runs a step that every protocol has. Returns whether the step was one of these.
    pub fn common_step(&mut self, step: Step, bytes: &mut Bytes) -> Option<bool> {
        match (step.event, step.conn) {
            (0, Some(conn)) => self.disconnect(conn),
            (1, Some(conn)) => self.alive(conn),
            (2, Some(conn)) => {
                let room = usize::from(bytes.next()? % 4);
                match room {
                    3 => self.outbox.room_in_queue.remove(&conn),
                    room => self.outbox.room_in_queue.insert(conn, room),
                };
            }
            (3, _) => {
                self.now += Duration::from_millis(100 * step.selector as u64);
                self.input(Input::Time);
            }
            (4, _) => {
                self.now = self.now.max(self.dispatcher.next_timer().unwrap_or_default());
                self.input(Input::Time);
                assert!(self.dispatcher.next_timer().is_none_or(|at| at > self.now));
            }
            (5, Some(conn)) => {
                let length = usize::from(bytes.next()?);
                let message = bytes.take(length);
                self.send(conn, message, step.selector & 0x80 != 0);
            }
            (6, Some(conn)) => {
                for _ in 0..=step.selector / 16 {
                    self.frame(conn);
                }
            }
            _ => return Some(false),
        }
        Some(true)
    }

    /// Returns the connection in a slot.
    pub fn conn(&self, slot: usize) -> Option<Conn> {
        self.peers[slot]
    }

    /// Returns the id that the server has assigned to a connection.
    pub fn name(&self, conn: Conn) -> Option<&str> {
        self.outbox.names.get(&conn).map(String::as_str)
    }

    /// Connects a peer in a free slot, if the protocol accepts it.
    pub fn connect(&mut self, slot: usize, target: &Target, claims: Option<&Claims>) -> Option<Conn> {
        assert_eq!(self.peers[slot], None);
        let has_capacity = self.rules.has_capacity(target);
        assert_eq!(self.dispatcher.has_capacity(target), has_capacity, "{target:?}");
        assert_eq!(self.dispatcher.room_exists(target), self.rules.room_exists(target), "{target:?}");
        if !has_capacity {
            return None;
        }
        self.connections += 1;
        let conn = Conn::new(self.connections, slot);
        self.peers[slot] = Some(conn);
        self.open += 1;
        self.input(Input::Connected(conn, target, claims));
        Some(conn)
    }

    /// Sends a message of a peer, unless it is paused.
    pub fn send(&mut self, conn: Conn, message: &[u8], is_binary: bool) {
        if !self.is_read(conn) {
            return;
        }
        match std::str::from_utf8(message) {
            Ok(text) if !is_binary => self.input(Input::Text(conn, text)),
            _ => self.input(Input::Binary(conn, message)),
        }
    }

    /// Delivers a text message several times, with pauses.
    pub fn send_repeatedly(&mut self, conn: Conn, message: &[u8], repetition: Repetition) {
        for _ in 0..repetition.times {
            self.send(conn, message, false);
            self.now += repetition.pause;
            self.input(Input::Time);
        }
    }

    /// Reports received bytes of a peer, unless it is paused.
    pub fn alive(&mut self, conn: Conn) {
        if self.is_read(conn) {
            self.input(Input::Alive(conn));
        }
    }

    pub fn disconnect(&mut self, conn: Conn) {
        self.remove_connection(conn);
        self.input(Input::Disconnected(conn));
    }

    fn is_read(&self, conn: Conn) -> bool {
        self.peers[conn.slot()] == Some(conn) && !self.paused.contains(&conn)
    }

    fn remove_connection(&mut self, conn: Conn) {
        self.open -= usize::from(self.peers[conn.slot()].take() == Some(conn));
        self.paused.remove(&conn);
        self.outbox.room_in_queue.remove(&conn);
    }

    pub fn input(&mut self, input: Input) {
        self.prepare_model();
        let times = Times { now: self.now, wall: self.now };
        input.deliver(&mut self.dispatcher, times, &mut self.outbox);
        self.learn_from_server();
        context::handle(&mut self.rules, input);
        self.compare(&input);
        if let Some(conn) = input.conn().filter(|conn| self.peers[conn.slot()] == Some(*conn)) {
            let (_, members) = self.dispatcher.members(conn);
            let of_member =
                |member: Member| (member.room.to_owned(), member.id.map(String::from), member.state);
            let mut members: Vec<RoomMember> = members.into_iter().map(of_member).collect();
            members.sort();
            assert_eq!(members, self.rules.members(conn));
        }
    }

    /// Reports a frame of a peer that is not a message.
    pub fn frame(&mut self, conn: Conn) {
        if !self.is_read(conn) {
            return;
        }
        self.prepare_model();
        let times = Times { now: self.now, wall: self.now };
        let passes = self.dispatcher.charge_frame(times, conn, &mut self.outbox);
        self.learn_from_server();
        assert_eq!(context::handle_frame(&mut self.rules, conn), passes);
        self.compare(&"a frame");
    }

    fn prepare_model(&mut self) {
        let context = self.rules.context();
        context.now = self.now;
        context.room_in_queue = self.outbox.room_in_queue.clone();
    }

    /// Passes on what only the server knows: assigned ids, and whether reservations succeed.
    fn learn_from_server(&mut self) {
        let context = self.rules.context();
        if context.names.len() < self.outbox.names.len() {
            context.names.clone_from(&self.outbox.names);
        }
        context.grants = std::mem::take(&mut self.outbox.grants);
        self.rules.learn(&self.outbox.effects);
    }

    fn compare(&mut self, input: &dyn Debug) {
        self.inputs += 1;
        // Consistency checks visit all peers. With many peers, they would take nearly all the time after each input.
        let has_many_peers = self.open > CHECKED_ALWAYS_MAX;
        if !has_many_peers || self.inputs.is_multiple_of(CROWD_CHECKED_EVERY) {
            self.dispatcher.check();
            let reserved = self.outbox.budget.reserved();
            let stored = self.rules.stored_bytes();
            assert!(reserved >= stored && (reserved == 0) == (stored == 0), "{reserved} for {stored}");
        }
        let mut outputs = std::mem::take(&mut self.outbox.effects);
        for (_, output) in &mut outputs {
            if let Output::Text(text) = output {
                *text = (self.normalize)(std::mem::take(text));
            }
        }
        let context = self.rules.context();
        assert!(
            context.grants.is_empty(),
            "memory is reserved that the rules do not know of, after {input:?}"
        );
        // The order between different peers is irrelevant.
        let mut expected = std::mem::take(&mut context.outputs);
        expected.sort_by_key(|(conn, _)| *conn);
        outputs.sort_by_key(|(conn, _)| *conn);
        assert_eq!(outputs, expected, "server and model, after {input:?}");
        assert_eq!(self.outbox.room_in_queue, context.room_in_queue);
        assert_eq!(self.dispatcher.next_timer(), context::due_next(&mut self.rules), "after {input:?}");
        let (_, protocol) = self.dispatcher.each().next().expect("there is one protocol");
        let counts = protocol.counts(self.now);
        assert_eq!((counts.peers, counts.rooms), self.rules.counts());
        assert_eq!(counts.deliveries, self.rules.deliveries());
        let gauges: Vec<_> = counts.gauges.iter().map(|gauge| (gauge.name, gauge.value)).collect();
        assert_eq!(gauges, self.rules.gauges());
        let is_counted = |(_, count): &(&str, u64)| *count > 0;
        let messages: BTreeMap<_, _> = counts.messages.into_iter().filter(is_counted).collect();
        let errors: BTreeMap<_, _> = counts.errors.into_iter().filter(is_counted).collect();
        let context = self.rules.context();
        assert_eq!((&messages, &errors), (&context.messages, &context.errors));

        for (conn, output) in outputs {
            match output {
                Output::Pause => assert!(self.paused.insert(conn), "the connection is already paused"),
                Output::Resume => assert!(self.paused.remove(&conn), "the connection is not paused"),
                Output::Close(_) => {
                    assert_eq!(self.peers[conn.slot()], Some(conn), "the connection is already closed");
                    self.disconnect(conn);
                }
                Output::Text(_)
                | Output::Ping
                | Output::Registered(_)
                | Output::Entered(_)
                | Output::LimitReached(_)
                | Output::Left(..)
                | Output::TokenRefused(_) => {}
            }
        }
    }

    /// Disconnects all peers and asserts that nothing is left.
    pub fn end(mut self) {
        for slot in 0..self.peers.len() {
            if let Some(conn) = self.peers[slot] {
                self.disconnect(conn);
            }
        }
        if self.rules.stored_bytes() > 0 {
            // Messages of senders that have left are held until their time is over.
            self.now += HOLD_TIME;
            self.input(Input::Time);
        }
        // A leftover timer would keep the server awake.
        assert_eq!((self.rules.counts(), self.dispatcher.next_timer()), ((0, 0), None));
        assert_eq!(self.outbox.budget.reserved(), 0);
    }
}
