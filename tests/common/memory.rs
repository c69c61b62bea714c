//! All protocols behind their door, with an outbox on memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::RandomState;
use std::time::Duration;

use noroshi::config::Config;
use noroshi::memory_budget::{Budget, Reservation};
use noroshi::protocol::{Close, Conn, Input, Member, Outbox, ProtocolId, Target};
use noroshi::protocols::Dispatcher;
use noroshi::protocols::ayame::Ayame;
use noroshi::protocols::matchbox::Matchbox;
use noroshi::protocols::noroshi::Noroshi;
use noroshi::query::Query;
use noroshi::token::Claims;

use percent_encoding::percent_decode_str;

use super::transcript::{Heard, Wire};

/// All protocols of a configuration behind the door.
pub fn dispatcher(config: &Config) -> Dispatcher {
    let mut dispatcher = Dispatcher::new(config).to(ProtocolId::Noroshi, Noroshi::new(config));
    if config.ayame.is_some() {
        dispatcher = dispatcher.to(ProtocolId::Ayame, Ayame::new(config, RandomState::new()));
    }
    if config.matchbox.is_some() {
        dispatcher = dispatcher.to(ProtocolId::Matchbox, Matchbox::new(config, RandomState::new()));
    }
    dispatcher
}

/// A room of noroshi's own protocol.
pub fn target(room: &str) -> Target {
    Target { protocol: ProtocolId::Noroshi, room: room.to_owned(), query: Query::default() }
}

/// What has an id, rooms, and when something is due.
pub fn left(dispatcher: &Dispatcher) -> (usize, usize, Option<Duration>) {
    let sum = dispatcher.each().map(|(_, protocol)| protocol.counts(std::time::Duration::ZERO));
    let (peers, rooms) = sum.fold((0, 0), |(peers, rooms), it| (peers + it.peers, rooms + it.rooms));
    (peers, rooms, dispatcher.wake_at())
}

/// Peers by name, around the protocols. They answer pings at once, unless they are deaf. Events come in the order of the
/// server: the messages of a read, then the sign of life; what a paused connection has sent comes when it is read again.
pub struct Memory {
    pub dispatcher: Dispatcher,
    pub now: Duration,
    /// What time it was, since 1970, when the time began.
    pub epoch: Duration,
    pub outbox: Recorder,
    names: BTreeMap<String, Conn>,
    heard: BTreeMap<Conn, VecDeque<Heard>>,
    deaf: BTreeSet<Conn>,
    /// Connections that are not read, with what they have sent meanwhile.
    paused: BTreeMap<Conn, VecDeque<Message>>,
    /// The same for connections that are to be read again.
    resumed: VecDeque<(Conn, VecDeque<Message>)>,
    connections: u64,
}

/// A message as it was sent, and whether it is binary.
type Message = (Vec<u8>, bool);

/// Records all effects. Connections in `full` have no room for forwarded messages.
pub struct Recorder {
    pub effects: VecDeque<Recorded>,
    pub full: BTreeSet<Conn>,
    /// Whether no further memory may be reserved.
    pub out_of_memory: bool,
    pub budget: Budget,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder {
            effects: VecDeque::new(),
            full: BTreeSet::new(),
            out_of_memory: false,
            budget: Budget::new(&Config::default()),
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Recorded {
    Send(Conn, String),
    Ping(Conn),
    PauseReading(Conn),
    ResumeReading(Conn),
    Close(Conn, Close),
    Registered(Conn),
    Left(Conn),
}

impl Outbox for Recorder {
    fn has_room(&mut self, to: Conn, _: &[String]) -> bool {
        !self.full.contains(&to)
    }

    fn forward(&mut self, to: Conn, text: String) {
        self.effects.push_back(Recorded::Send(to, text));
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
        unreachable!("these protocols send no bytes");
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

    fn close(&mut self, conn: Conn, why: Close) {
        self.effects.push_back(Recorded::Close(conn, why));
    }

    fn registered(&mut self, conn: Conn, _: &str, _: &str) {
        self.effects.push_back(Recorded::Registered(conn));
    }

    fn disconnected(&mut self, conn: Conn, _: ProtocolId, _: &Member<'_>) {
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
            heard: BTreeMap::new(),
            deaf: BTreeSet::new(),
            paused: BTreeMap::new(),
            resumed: VecDeque::new(),
            connections: 0,
        }
    }

    pub fn conn(&self, who: &str) -> Conn {
        self.names[who]
    }

    /// How often a kind of message or an error has been counted.
    pub fn count(&self, name: &str) -> u64 {
        let counts = self.dispatcher.each().map(|(_, protocol)| protocol.counts(std::time::Duration::ZERO));
        let all = counts.flat_map(|counts| [counts.messages, counts.errors].concat());
        all.filter(|(it, _)| *it == name).map(|(_, count)| count).sum()
    }

    /// Bytes of memory that are reserved.
    pub fn reserved(&self) -> usize {
        self.outbox.budget.reserved()
    }

    /// Puts something in.
    pub fn handle(&mut self, input: Input) {
        self.dispatcher.handle(self.now, self.epoch + self.now, input, &mut self.outbox);
    }

    /// Puts something in and lets everybody hear what comes of it.
    pub fn input(&mut self, input: Input) {
        if let Input::Disconnected(conn) = input {
            self.paused.remove(&conn);
            self.resumed.retain(|(resumed, _)| *resumed != conn);
        }
        self.handle(input);
        self.dispatcher.check();
        while let Some(effect) = self.outbox.effects.pop_front() {
            match effect {
                Recorded::Send(to, text) => self.hear(to, Heard::Text(text)),
                Recorded::Ping(to) if self.deaf.contains(&to) => {}
                Recorded::Ping(to) => self.input(Input::Alive(to)),
                Recorded::PauseReading(conn) => _ = self.paused.insert(conn, VecDeque::new()),
                Recorded::ResumeReading(conn) => {
                    let sent = self.paused.remove(&conn).expect("only who is paused is resumed");
                    self.resumed.push_back((conn, sent));
                }
                Recorded::Close(to, why) => {
                    let code = match why {
                        Close::Replaced => 4000,
                        Close::RateLimited => 1008,
                        Close::Finished => 1000,
                    };
                    self.hear(to, Heard::Closed(code));
                    self.input(Input::Disconnected(to));
                }
                Recorded::Registered(_) | Recorded::Left(_) => {}
            }
        }
        while let Some((conn, sent)) = self.resumed.pop_front() {
            self.deliver(conn, sent);
        }
    }

    /// Handles what one connection has sent, in order, until it is paused.
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

    fn enter(&mut self, who: &str, target: &Target, claims: Option<&Claims>) {
        let conn = Conn::new(self.connections, self.connections as usize);
        self.connections += 1;
        self.names.insert(who.to_owned(), conn);
        self.heard.insert(conn, VecDeque::new());
        self.input(Input::Connected(conn, target, claims));
    }

    fn hear(&mut self, who: Conn, heard: Heard) {
        if !self.deaf.contains(&who) {
            self.heard.get_mut(&who).expect("only who is connected hears").push_back(heard);
        }
    }
}

impl Wire for Memory {
    fn open(&mut self, who: &str, room: &str) {
        self.enter(who, &target(room), None);
    }

    fn admit(&mut self, who: &str, room: &str, claims: &Claims) {
        self.enter(who, &target(room), Some(claims));
    }

    fn open_at(&mut self, who: &str, path: &str) {
        let (room, query) = path.split_once('?').unwrap_or((path, ""));
        let room = percent_decode_str(room.trim_start_matches('/')).decode_utf8().unwrap().into_owned();
        let (dialect, room) = if room == "signaling" {
            (ProtocolId::Ayame, String::new())
        } else {
            (ProtocolId::Matchbox, room)
        };
        let target = Target { protocol: dialect, room, query: Query::new(query) };
        assert!(self.dispatcher.has_place(&target));
        self.enter(who, &target, None);
    }

    /// There is no HTTP here.
    fn status(&mut self, _: &str, _: bool) -> Option<u16> {
        None
    }

    fn say(&mut self, who: &str, text: &[u8], binary: bool) {
        let conn = self.conn(who);
        let message = (text.to_vec(), binary);
        match self.paused.get_mut(&conn) {
            Some(waiting) => waiting.push_back(message),
            None => self.deliver(conn, [message].into()),
        }
    }

    fn deafen(&mut self, who: &str) {
        self.deaf.insert(self.conn(who));
    }

    fn cut(&mut self, who: &str) {
        self.leave(who);
    }

    fn leave(&mut self, who: &str) {
        self.input(Input::Disconnected(self.conn(who)));
    }

    fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some(due) = self.dispatcher.wake_at().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.input(Input::Time);
        }
        self.now = until;
    }

    fn next(&mut self, who: &str) -> Option<Heard> {
        self.heard.get_mut(&self.names[who])?.pop_front()
    }

    fn finish(mut self: Box<Self>) {
        for conn in self.heard.keys().copied().collect::<Vec<_>>() {
            self.input(Input::Disconnected(conn));
        }
        assert_eq!(left(&self.dispatcher), (0, 0, None));
        assert_eq!(self.reserved(), 0, "all memory is released");
    }
}
