//! The bare hub, with an outbox on memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use noroshi::config::Config;
use noroshi::hub::Hub;
use noroshi::protocol::{Close, Conn, Effect, Input, Outbox};
use noroshi::token::Claims;

use super::transcript::{Heard, Wire};

/// Peers by name, around a hub. They answer pings at once, unless they are deaf.
pub struct Memory {
    pub hub: Hub,
    pub now: Duration,
    pub outbox: Recorder,
    names: BTreeMap<String, Conn>,
    heard: BTreeMap<Conn, VecDeque<Heard>>,
    deaf: BTreeSet<Conn>,
    connections: u64,
}

/// Keeps all effects. Those in `full` have no room for what is forwarded.
#[derive(Default)]
pub struct Recorder {
    pub effects: VecDeque<Recorded>,
    pub full: BTreeSet<Conn>,
    /// Whether nothing more may be kept.
    pub out_of_memory: bool,
}

#[derive(Debug, PartialEq)]
pub enum Recorded {
    Send(Conn, String),
    Ping(Conn),
    Close(Conn, Close),
    Registered(Conn),
}

impl Outbox for Recorder {
    fn has_room(&mut self, to: Conn, _: &[String]) -> bool {
        !self.full.contains(&to)
    }

    fn may_keep(&mut self, _: usize) -> bool {
        !self.out_of_memory
    }

    fn push(&mut self, effect: Effect<'_>) {
        self.effects.push_back(match effect {
            Effect::Send(to, text) => Recorded::Send(to, text),
            Effect::Ping(to) => Recorded::Ping(to),
            Effect::Close(to, why) => Recorded::Close(to, why),
            Effect::Registered { conn, .. } => Recorded::Registered(conn),
        });
    }
}

impl Memory {
    pub fn new(config: &Config) -> Memory {
        Memory {
            hub: Hub::new(config),
            now: Duration::ZERO,
            outbox: Recorder::default(),
            names: BTreeMap::new(),
            heard: BTreeMap::new(),
            deaf: BTreeSet::new(),
            connections: 0,
        }
    }

    pub fn conn(&self, who: &str) -> Conn {
        self.names[who]
    }

    /// Puts something in and lets everybody hear what comes of it.
    pub fn input(&mut self, input: Input) {
        self.hub.handle(self.now, input, &mut self.outbox);
        self.hub.check();
        while let Some(effect) = self.outbox.effects.pop_front() {
            match effect {
                Recorded::Send(to, text) => self.hear(to, Heard::Text(text)),
                Recorded::Ping(to) if self.deaf.contains(&to) => {}
                Recorded::Ping(to) => self.input(Input::Alive(to)),
                Recorded::Close(to, why) => {
                    let code = match why {
                        Close::Replaced => 4000,
                        Close::RateLimited => 1008,
                    };
                    self.hear(to, Heard::Closed(code));
                    self.input(Input::Disconnected(to));
                }
                Recorded::Registered(_) => {}
            }
        }
    }

    fn enter(&mut self, who: &str, room: &str, claims: Option<&Claims>) {
        let conn = Conn::new(self.connections, self.connections as usize);
        self.connections += 1;
        self.names.insert(who.to_owned(), conn);
        self.heard.insert(conn, VecDeque::new());
        self.input(Input::Connected(conn, room, claims));
    }

    fn hear(&mut self, who: Conn, heard: Heard) {
        if !self.deaf.contains(&who) {
            self.heard.get_mut(&who).expect("only who is connected hears").push_back(heard);
        }
    }
}

impl Wire for Memory {
    fn open(&mut self, who: &str, room: &str) {
        self.enter(who, room, None);
    }

    fn admit(&mut self, who: &str, room: &str, claims: &Claims) {
        self.enter(who, room, Some(claims));
    }

    fn say(&mut self, who: &str, text: &[u8], binary: bool) {
        self.input(Input::Alive(self.conn(who)));
        match std::str::from_utf8(text) {
            Ok(text) if !binary => self.input(Input::Text(self.conn(who), text)),
            _ => self.input(Input::Binary(self.conn(who), text)),
        }
    }

    fn deafen(&mut self, who: &str) {
        self.deaf.insert(self.conn(who));
    }

    fn leave(&mut self, who: &str) {
        self.input(Input::Disconnected(self.conn(who)));
    }

    fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some(due) = self.hub.wake_at().filter(|due| *due <= until) {
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
        assert_eq!((self.hub.peers(), self.hub.rooms(), self.hub.wake_at()), (0, 0, None));
    }
}
