//! A naive model of matchbox's protocol, written from `src/protocols/README.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use noroshi::http::query::Query;
use noroshi::http::token::Claims;
use noroshi::json;
use noroshi::protocol::{Conn, Target};

use super::QUERIES;
use super::context::{Context, Output, RoomMember, Rules, credits_for_deliveries};

pub struct Model {
    context: Context,
    peers_max: usize,
    /// The group number of each peer.
    peers: BTreeMap<Conn, usize>,
    groups: BTreeMap<usize, Group>,
    groups_ever: usize,
}

struct Group {
    room: String,
    /// Number of peers in the group. 0: unlimited.
    size: usize,
    is_complete: bool,
    members: Vec<Conn>,
}

/// Returns the room and the group size that a target requests.
fn requested_group(target: &Target) -> (&str, usize) {
    let (_, size) = QUERIES
        .iter()
        .find(|(query, _)| Query::new(query) == target.query)
        .expect("the query is one of the list");
    (&target.room, *size)
}

impl Model {
    pub fn new(rate: u32, peers_max: usize) -> Model {
        Model {
            context: Context::new(rate),
            peers_max,
            peers: BTreeMap::new(),
            groups: BTreeMap::new(),
            groups_ever: 0,
        }
    }

    /// Returns the group that a new peer joins, if there is one.
    fn open_group(&self, target: &Target) -> Option<usize> {
        let (room, size) = requested_group(target);
        let is_open = |group: &Group| group.room == room && group.size == size && !group.is_complete;
        self.groups.iter().find(|(_, group)| is_open(group)).map(|(number, _)| *number)
    }

    fn notify_group(&mut self, number: usize, text: &str) {
        for member in self.groups[&number].members.clone() {
            self.context.emit(member, Output::Text(text.to_owned()));
        }
    }
}

impl Rules for Model {
    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn connected(&mut self, conn: Conn, target: &Target, _: Option<&Claims>) {
        let (room, size) = requested_group(target);
        let number = self.open_group(target).unwrap_or_else(|| {
            self.groups_ever += 1;
            let group = Group { room: room.to_owned(), size, is_complete: false, members: vec![] };
            self.groups.insert(self.groups_ever, group);
            self.groups_ever
        });
        let id = self.context.names[&conn].clone();
        self.context.emit(conn, Output::Registered(room.to_owned()));
        self.context.emit(conn, Output::Text(format!(r#"{{"IdAssigned":"{id}"}}"#)));
        // Connecting costs one credit, and the notices to the others.
        let others = self.groups[&number].members.len();
        let _ = self.context.pay(conn, credits_for_deliveries(others, 100), 0);
        self.notify_group(number, &format!(r#"{{"NewPeer":"{id}"}}"#));
        let group = self.groups.get_mut(&number).expect("the group exists");
        group.members.push(conn);
        group.is_complete = group.members.len() == size;
        self.peers.insert(conn, number);
    }

    fn text(&mut self, conn: Conn, text: &str) {
        if text.trim_ascii() == r#""KeepAlive""# {
            return self.context.count_message("KeepAlive");
        }
        let signal = field(text, "Signal");
        let receiver = signal.and_then(|signal| field(signal, "receiver"));
        let data = signal.and_then(|signal| field(signal, "data"));
        let receiver = receiver.and_then(|text| text.strip_prefix('"')?.strip_suffix('"'));
        let (Some(receiver), Some(data)) = (receiver, data) else {
            return self.context.count_error("not_understood");
        };
        self.context.count_message("Signal");
        let named = self
            .peers
            .iter()
            .find(|(other, group)| self.context.names[other] == receiver && **group == self.peers[&conn]);
        let Some((&to, _)) = named else { return self.context.count_error("unknown_peer") };
        let sender = &self.context.names[&conn];
        let text = format!(r#"{{"Signal":{{"sender":"{sender}","data":{data}}}}}"#);
        if !self.context.forward(to, vec![text]) {
            self.context.count_error("peer_busy");
        }
    }

    fn binary(&mut self, _: Conn, _: &[u8]) {
        self.context.count_error("not_understood");
    }

    fn dropped(&mut self, _: Conn, _: bool) {
        self.context.count_error("rate_limited");
    }

    fn alive(&mut self, _: Conn) {
        unreachable!("matchbox has no probes");
    }

    fn silent(&mut self, _: Conn) {
        unreachable!("matchbox has no probes");
    }

    fn disconnected(&mut self, conn: Conn) {
        let Some(number) = self.peers.remove(&conn) else { return };
        let group = self.groups.get_mut(&number).expect("the group exists");
        group.members.retain(|member| *member != conn);
        let id = self.context.names[&conn].clone();
        self.context.emit(conn, Output::Left(group.room.clone(), Some(id.clone())));
        self.notify_group(number, &format!(r#"{{"PeerLeft":"{id}"}}"#));
        if self.groups[&number].members.is_empty() {
            self.groups.remove(&number);
        }
    }

    fn timer(&mut self) {
        unreachable!("there are no timers");
    }

    fn timer_due(&self) -> Option<Duration> {
        None
    }

    fn has_capacity(&self, target: &Target) -> bool {
        self.open_group(target).is_none_or(|group| self.groups[&group].members.len() < self.peers_max)
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.open_group(target).is_some()
    }

    fn member(&self, conn: Conn) -> Option<RoomMember> {
        let group = &self.groups[self.peers.get(&conn)?];
        Some((group.room.clone(), Some(self.context.names[&conn].clone()), "joined"))
    }

    fn counts(&self) -> (usize, usize) {
        (self.peers.len(), self.groups.len())
    }
}

/// Returns the text of a field. Of duplicate keys the last one counts.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    json::parse_object(text, |key, value| {
        if key == name {
            found = Some(value);
        }
    })?;
    found
}
