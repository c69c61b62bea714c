//! matchbox, the protocol of `matchbox_socket` and so of games in Rust and Bevy: a mesh in which who was there offers to
//! who comes, and ids are the server's. What is said is in `tests/transcripts/matchbox`.
//!
//! A [`Protocol`], and as pure as all of them. Who comes in with `?next=N` waits in a group that is closed with the Nth,
//! and is a room of its own from the first.

use std::collections::HashMap;
use std::hash::RandomState;
use std::time::Duration;

use slab::Slab;

use crate::config::Config;
use crate::json;
use crate::metrics::Counts;
use crate::protocol::{Conn, Input, Member, Target};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::list::{List, ListNodes};
use crate::protocols::uuid::UuidCodec;
use crate::protocols::{Protocol, Turn};
use crate::rate_limit::credits_for_deliveries;

/// All groups, and who is in them.
pub struct Matchbox {
    uuids: UuidCodec,
    peers_max: usize,
    /// The group of each.
    members: ConnTable<usize>,
    /// Who is before and after each in its group.
    links: ListNodes,
    groups: Slab<Group>,
    /// The groups that newcomers come into, by room and `next`.
    open: HashMap<Key, usize>,
    counts: Counts,
}

/// A room, and how many make a group in it; 0: there is but one group, and it is never closed.
type Key = (Box<str>, usize);

struct Group {
    key: Key,
    members: List,
}

/// What a message says.
enum Said<'a> {
    Signal { receiver: &'a str, data: &'a str },
    KeepAlive,
}

impl Matchbox {
    /// Without anybody. Ids are made with this key.
    pub fn new(config: &Config, key: RandomState) -> Matchbox {
        Matchbox {
            uuids: UuidCodec::new(key),
            peers_max: config.mesh_peers_max,
            members: ConnTable::NEW,
            links: ListNodes::default(),
            groups: Slab::new(),
            open: HashMap::new(),
            counts: Counts::zero(
                &["Signal", "KeepAlive"],
                &["not_understood", "unknown_peer", "peer_busy", "rate_limited"],
            ),
        }
    }

    fn join(&mut self, conn: Conn, target: &Target, turn: &mut Turn) {
        let key = key(target);
        let Matchbox { groups, open, .. } = self;
        let new = || groups.insert(Group { key: key.clone(), members: List::default() });
        let group = *open.entry(key.clone()).or_insert_with(new);
        let id = self.uuids.encode(conn);
        turn.registered(conn, &key.0, &id);
        turn.send(conn, format!(r#"{{"IdAssigned":"{id}"}}"#));
        let announcement = format!(r#"{{"NewPeer":"{id}"}}"#);
        // A new connection has all its credits: this reduces them, and is never refused.
        let credits = credits_for_deliveries(self.groups[group].members.len(), announcement.len());
        turn.charge(conn, 1 + credits, 0);
        self.tell_all(group, &announcement, turn);
        let slot = self.members.insert(conn, group);
        self.links.ensure_slot(slot);
        self.links.push_back(&mut self.groups[group].members, slot);
        if self.groups[group].members.len() == key.1 {
            self.open.remove(&key);
        }
    }

    fn leave(&mut self, slot: Slot, turn: &mut Turn) {
        let conn = self.members.conn(slot);
        turn.left(conn, self.member(conn));
        let (_, group) = self.members.remove(slot);
        self.links.remove(&mut self.groups[group].members, slot);
        self.tell_all(group, &format!(r#"{{"PeerLeft":"{}"}}"#, self.uuids.encode(conn)), turn);
        if self.groups[group].members.is_empty() {
            let key = self.groups.remove(group).key;
            if self.open.get(&key) == Some(&group) {
                self.open.remove(&key);
            }
        }
    }

    fn tell_all(&self, group: usize, text: &str, turn: &mut Turn) {
        for slot in self.links.iter(&self.groups[group].members) {
            turn.send(self.members.conn(slot), text.to_owned());
        }
    }

    /// What cannot be understood, or delivered, is passed over: there is no word for it.
    fn hear(&mut self, slot: Slot, text: &str, turn: &mut Turn) {
        let (receiver, data) = match said(text) {
            Some(Said::Signal { receiver, data }) => (receiver, data),
            Some(Said::KeepAlive) => return self.counts.count_message("KeepAlive"),
            None => return self.counts.count_error("not_understood"),
        };
        self.counts.count_message("Signal");
        let to = self.uuids.decode(receiver).and_then(|to| self.members.find(to));
        let Some(to) = to.filter(|to| self.members[*to] == self.members[slot]) else {
            return self.counts.count_error("unknown_peer");
        };
        let (to, sender) = (self.members.conn(to), self.uuids.encode(self.members.conn(slot)));
        if !turn.forward(to, [format!(r#"{{"Signal":{{"sender":"{sender}","data":{data}}}}}"#)]) {
            self.counts.count_error("peer_busy");
        }
    }
}

impl Protocol for Matchbox {
    fn handle(&mut self, input: Input<'_>, turn: &mut Turn) {
        if let Input::Connected(conn, target, _) = input {
            return self.join(conn, target, turn);
        }
        let Some(slot) = input.conn().and_then(|conn| self.members.find(conn)) else { return };
        match input {
            Input::Text(_, text) => self.hear(slot, text, turn),
            Input::Binary(..) => self.counts.count_error("not_understood"),
            Input::Dropped { .. } => self.counts.count_error("rate_limited"),
            Input::Disconnected(_) => self.leave(slot, turn),
            Input::Connected(..) | Input::Alive(_) | Input::Silent(_) | Input::Time => {}
        }
    }

    fn has_place(&self, target: &Target) -> bool {
        let group = self.open.get(&key(target)).map(|group| &self.groups[*group]);
        group.is_none_or(|group| group.members.len() < self.peers_max)
    }

    fn knows_room(&self, target: &Target) -> bool {
        self.open.contains_key(&key(target))
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let group = &self.groups[self.members[self.members.find(conn)?]];
        Some(Member { room: &group.key.0, id: Some(self.uuids.encode(conn).into()), state: "joined" })
    }

    fn counts(&self, _: Duration) -> Counts {
        let peers = self.members.iter().count();
        Counts { peers, rooms: self.groups.len(), ..self.counts.clone() }
    }

    fn check(&self) {
        for (key, group) in &self.groups {
            let members: Vec<u32> = self.links.iter(&group.members).collect();
            assert!(!members.is_empty(), "a group goes with its last member");
            for slot in members {
                assert_eq!(self.members[slot], key);
            }
        }
        let grouped: usize = self.groups.iter().map(|(_, group)| group.members.len()).sum();
        assert_eq!(grouped, self.members.iter().count());
        assert!(self.open.iter().all(|(key, group)| self.groups[*group].key == *key));
    }
}

/// Of several `next` the last counts; what is no number, or makes no group, is none.
fn key(target: &Target) -> Key {
    let last = target.query.values("next").last();
    let next = last.and_then(|number| number.ok()?.parse().ok()).unwrap_or(0);
    (target.room.as_str().into(), next)
}

fn said(text: &str) -> Option<Said<'_>> {
    if text.trim_ascii() == r#""KeepAlive""# {
        return Some(Said::KeepAlive);
    }
    let (mut signal, mut receiver, mut data) = (None, None, None);
    json::parse_object(text, |key, value| signal = Some(value).filter(|_| key == "Signal"))?;
    json::parse_object(signal?, |key, value| match key {
        "receiver" => receiver = value.strip_prefix('"').and_then(|id| id.strip_suffix('"')),
        "data" => data = Some(value),
        _ => {}
    })?;
    Some(Said::Signal { receiver: receiver?, data: data? })
}
