//! matchbox: the signaling protocol of `matchbox_socket`, for games in Rust and Bevy.
//!
//! All peers of a group form a mesh: the peers that are connected send offers to each new peer. The server
//! assigns the ids. A room normally has one group of any size. With `?next=N`, peers of the same room and N
//! form groups of N: a group is complete, and closed to further peers, with the Nth.
//!
//! The transcripts in `tests/transcripts/matchbox` show all messages.

use std::collections::HashMap;
use std::hash::RandomState;
use std::time::Duration;

use slab::Slab;

use crate::config::{Config, Endpoint};
use crate::http::query::Query;
use crate::http::token::Claims;
use crate::json;
use crate::message::Message;
use crate::metrics::Counts;
use crate::protocol::{Conn, Context, Descriptor, Member, Protocol, Route, Target, TokenPlace};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::list::{List, ListNodes};
use crate::protocols::path_room;
use crate::protocols::uuid::UuidCodec;
use crate::rate_limit::credits_for_deliveries;

/// All groups and peers.
pub struct Matchbox {
    uuids: UuidCodec,
    mesh_peers_max: usize,
    /// The group of each peer, an index of `groups`.
    peers: ConnTable<usize>,
    /// Links of the lists of members.
    list_nodes: ListNodes,
    groups: Slab<Group>,
    /// The groups that accept new peers.
    open_groups: HashMap<GroupKey, usize>,
    counts: Counts,
}

/// The room, and the size of a complete group. Size 0: the room has one group, which accepts new peers
/// always.
type GroupKey = (Box<str>, usize);

struct Group {
    key: GroupKey,
    members: List,
}

/// A message of a client.
enum Request<'a> {
    Signal { receiver: &'a str, data: &'a str },
    KeepAlive,
}

/// Registers the protocol.
pub static DESCRIPTOR: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "matchbox",
        title: "matchbox",
        default_path: "/",
        is_always_on: false,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: true,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: Some("/health"),
        stored_bytes_max: 0,
    },
    token_place: TokenPlace::Request,
    route,
    new: |config, key| Box::new(Matchbox::new(config, key)),
};

impl Protocol for Matchbox {
    fn on_connect(&mut self, conn: Conn, target: &Target, _: Option<&Claims>, context: &mut Context) {
        self.add_peer(conn, target, context);
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        let Some(slot) = self.peers.find(conn) else { return };
        match message {
            Message::Text(text) => self.on_text(slot, text, context),
            Message::Binary(_) => self.counts.count_error("not_understood"),
        }
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {
        self.counts.count_error("rate_limited");
    }

    fn on_disconnect(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            self.remove_peer(slot, context);
        }
    }

    fn has_capacity(&self, target: &Target) -> bool {
        match self.open_groups.get(&group_key(target)) {
            Some(group) => self.groups[*group].members.len() < self.mesh_peers_max,
            None => true,
        }
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.open_groups.contains_key(&group_key(target))
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let slot = self.peers.find(conn)?;
        let group = &self.groups[self.peers[slot]];
        let (room, _) = &group.key;
        Some(Member { room, id: Some(self.uuids.encode(conn).into()), state: "joined" })
    }

    fn counts(&self, _: Duration) -> Counts {
        let peers = self.peers.iter().count();
        Counts { peers, rooms: self.groups.len(), ..self.counts.clone() }
    }

    fn check(&self) {
        let mut member_count = 0;
        for (index, group) in &self.groups {
            assert!(!group.members.is_empty(), "a group is removed with its last member");
            for slot in self.list_nodes.iter(&group.members) {
                assert_eq!(self.peers[slot], index);
            }
            member_count += group.members.len();
        }
        assert_eq!(member_count, self.peers.iter().count());
        for (key, index) in &self.open_groups {
            assert!(self.groups[*index].key == *key);
        }
    }
}

impl Matchbox {
    /// Creates the protocol without groups. `key` makes the peer ids unguessable.
    pub fn new(config: &Config, key: RandomState) -> Matchbox {
        Matchbox {
            uuids: UuidCodec::new(key),
            mesh_peers_max: config.mesh_peers_max,
            peers: ConnTable::NEW,
            list_nodes: ListNodes::default(),
            groups: Slab::new(),
            open_groups: HashMap::new(),
            counts: Counts::zero(
                &["Signal", "KeepAlive"],
                &["not_understood", "unknown_peer", "peer_busy", "rate_limited"],
            ),
        }
    }

    /// Adds a new peer to a group and announces it.
    fn add_peer(&mut self, conn: Conn, target: &Target, context: &mut Context) {
        let key = group_key(target);
        let index = self.find_or_create_group(&key);
        let (room, size) = &key;
        let id = self.uuids.encode(conn);
        context.registered(conn, room, &id);
        context.send(conn, format!(r#"{{"IdAssigned":"{id}"}}"#));
        let notice = format!(r#"{{"NewPeer":"{id}"}}"#);
        // The verdict is ignored: a new connection has all its credits, and a price above them is reduced to them, so that it is
        // `Pass`.
        let credits = credits_for_deliveries(self.groups[index].members.len(), notice.len());
        context.charge_without_message(conn, credits);
        self.broadcast(index, &notice, context);
        let slot = self.peers.insert(conn, index);
        self.list_nodes.ensure_slot(slot);
        let group = &mut self.groups[index];
        self.list_nodes.push_back(&mut group.members, slot);
        if group.members.len() == *size {
            self.open_groups.remove(&key);
        }
    }

    fn find_or_create_group(&mut self, key: &GroupKey) -> usize {
        if let Some(index) = self.open_groups.get(key) {
            return *index;
        }
        let index = self.groups.insert(Group { key: key.clone(), members: List::default() });
        self.open_groups.insert(key.clone(), index);
        index
    }

    /// Removes a peer and announces that to its group.
    ///
    /// The group is removed with its last member.
    fn remove_peer(&mut self, slot: Slot, context: &mut Context) {
        let conn = self.peers.conn(slot);
        let (_, index) = self.peers.remove(slot);
        self.list_nodes.remove(&mut self.groups[index].members, slot);
        let id = self.uuids.encode(conn);
        self.broadcast(index, &format!(r#"{{"PeerLeft":"{id}"}}"#), context);
        if self.groups[index].members.is_empty() {
            let group = self.groups.remove(index);
            if self.open_groups.get(&group.key) == Some(&index) {
                self.open_groups.remove(&group.key);
            }
        }
    }

    fn broadcast(&self, group: usize, text: &str, context: &mut Context) {
        for slot in self.list_nodes.iter(&self.groups[group].members) {
            context.send(self.peers.conn(slot), text.to_owned());
        }
    }

    /// Handles a message: forwards a signal to its receiver.
    ///
    /// Malformed and undeliverable messages are counted and ignored, because the protocol has no error
    /// message.
    fn on_text(&mut self, slot: Slot, text: &str, context: &mut Context) {
        let (receiver, data) = match parse(text) {
            Some(Request::Signal { receiver, data }) => (receiver, data),
            Some(Request::KeepAlive) => return self.counts.count_message("KeepAlive"),
            None => return self.counts.count_error("not_understood"),
        };
        self.counts.count_message("Signal");
        let Some(to) = self.find_receiver(slot, receiver) else {
            return self.counts.count_error("unknown_peer");
        };
        let sender = self.uuids.encode(self.peers.conn(slot));
        let signal = format!(r#"{{"Signal":{{"sender":"{sender}","data":{data}}}}}"#);
        if !context.forward(self.peers.conn(to), [signal]) {
            self.counts.count_error("peer_busy");
        }
    }

    /// Finds the peer with this id in the group of the sender.
    fn find_receiver(&self, sender: Slot, id: &str) -> Option<Slot> {
        let conn = self.uuids.decode(id)?;
        let receiver = self.peers.find(conn)?;
        (self.peers[receiver] == self.peers[sender]).then_some(receiver)
    }
}

/// Returns the room that a path names, if the query is valid.
fn route(below: Option<&str>, query: &Query) -> Route {
    let route = path_room::route(below);
    let is_query_valid = !query.values("next").any(|next| next.is_err());
    match route {
        Route::Room(_) if !is_query_valid => Route::Invalid("query field next: expected UTF-8"),
        route => route,
    }
}

/// Returns the group that a target asks for. The last `next` counts; an invalid number counts as 0.
fn group_key(target: &Target) -> GroupKey {
    let next = match target.query.values("next").last() {
        Some(Ok(number)) => number.parse().unwrap_or(0),
        _ => 0,
    };
    (target.room.as_str().into(), next)
}

fn parse(text: &str) -> Option<Request<'_>> {
    if text.trim_ascii() == r#""KeepAlive""# {
        return Some(Request::KeepAlive);
    }
    let mut signal = None;
    // A message has one variant: any other last key makes it invalid.
    json::parse_object(text, |key, value| {
        signal = if key == "Signal" { Some(value) } else { None };
    })?;
    let mut receiver = None;
    let mut data = None;
    json::parse_object(signal?, |key, value| match key {
        "receiver" => receiver = value.strip_prefix('"').and_then(|id| id.strip_suffix('"')),
        "data" => data = Some(value),
        _ => {}
    })?;
    Some(Request::Signal { receiver: receiver?, data: data? })
}
