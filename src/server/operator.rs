//! The responses of the operator listener (`--metrics`): `/metrics` and `/rooms`.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::admission::{OperatorRequest, OperatorResource};
use super::{Server, clock};
use crate::http::Response;
use crate::json;
use crate::limits::{MEMBERS_LISTED_MAX, ROOMS_BYTES_MAX};
use crate::protocol::{Conn, Member};

impl Server {
    /// Responds to a request of an operator.
    pub(super) fn respond_to_operator(&mut self, request: &OperatorRequest) -> Response {
        let text = match &request.resource {
            OperatorResource::Metrics => self.metrics(),
            OperatorResource::Rooms { room, after } => self.rooms(room.as_deref(), *after),
        };
        request.render(&text)
    }

    /// Renders the metrics, with the counters of protocols, sessions and the process.
    fn metrics(&mut self) -> String {
        let metrics = &mut self.connections.shared.metrics;
        metrics.connections = self.connections.websockets;
        metrics.started = self.clock.epoch();
        metrics.descriptors = clock::descriptors();
        let now = self.clock.now();
        let counts = self.dispatcher.each().map(|(name, protocol)| (name, protocol.counts(now)));
        metrics.protocols = counts.collect();
        metrics.render()
    }

    /// Renders a page of the members of all rooms, or of the rooms with this name, that come after a cursor.
    ///
    /// Rooms are ordered by a hash of protocol and name: the order means nothing, but is the same on all pages.
    fn rooms(&self, name: Option<&str>, after: Option<(u64, u64)>) -> String {
        // The first members after the cursor, as many as a page may have.
        let mut first: BinaryHeap<Listed> = BinaryHeap::new();
        let mut has_more = false;
        for (_, entry) in &self.connections.entries {
            let (protocol, members) = self.dispatcher.members(entry.conn);
            for member in members {
                if name.is_some_and(|name| name != member.room) {
                    continue;
                }
                let cursor = (room_hash(protocol, &member), entry.conn.bits());
                if after.is_some_and(|after| after >= cursor) {
                    continue;
                }
                if first.len() == MEMBERS_LISTED_MAX {
                    has_more = true;
                    if first.peek().is_some_and(|last| last.cursor <= cursor) {
                        continue;
                    }
                    first.pop();
                }
                first.push(Listed { cursor, json: MemberJson::new(protocol, &member) });
            }
        }
        // The beginning of the JSON of each room, and of its members.
        let mut rooms: Vec<(String, Vec<String>)> = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for Listed { cursor, json } in first.into_sorted_vec() {
            if bytes > ROOMS_BYTES_MAX {
                has_more = true;
                break;
            }
            let entry = &self.connections.entries[Conn::from_bits(cursor.1).slot()];
            let MemberJson { room: begin, id, state } = json;
            if rooms.last().is_none_or(|last| last.0 != begin) {
                bytes += begin.len();
                rooms.push((begin, Vec::new()));
            }
            let member = format!(
                r#"{{"connection":{},"id":{id},"state":"{state}","address":"{}","since":{}}}"#,
                entry.conn.number(),
                entry.address,
                (self.clock.epoch() + entry.since.get()).as_secs(),
            );
            bytes += member.len();
            rooms.last_mut().expect("a room was pushed").1.push(member);
            last = Some(cursor);
        }
        let rooms: Vec<String> =
            rooms.iter().map(|(begin, members)| format!("{begin}{}]}}", members.join(","))).collect();
        let next = last.filter(|_| has_more).map(|(number, bits)| format!(r#""{number:x}.{bits:x}""#));
        format!(r#"{{"rooms":[{}],"next":{}}}"#, rooms.join(","), next.as_deref().unwrap_or("null"))
    }
}

/// A member on a page of rooms. Ordered by the cursor.
struct Listed {
    cursor: (u64, u64),
    json: MemberJson,
}

/// The parts of the JSON of a member that its protocol knows.
struct MemberJson {
    /// The beginning of the JSON of its room.
    room: String,
    id: String,
    state: &'static str,
}

impl MemberJson {
    fn new(protocol: &str, member: &Member) -> MemberJson {
        let room = quoted(member.room);
        MemberJson {
            room: format!(r#"{{"protocol":"{protocol}","room":{room},"members":["#),
            id: member.id.as_ref().map_or("null".to_owned(), |id| quoted(id)),
            state: member.state,
        }
    }
}

impl PartialEq for Listed {
    fn eq(&self, other: &Listed) -> bool {
        self.cursor == other.cursor
    }
}

impl Eq for Listed {}

impl PartialOrd for Listed {
    fn partial_cmp(&self, other: &Listed) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Listed {
    fn cmp(&self, other: &Listed) -> Ordering {
        self.cursor.cmp(&other.cursor)
    }
}

/// Returns a text as a JSON string.
fn quoted(text: &str) -> String {
    let mut json = Vec::new();
    json::push_string(&mut json, text);
    String::from_utf8(json).expect("JSON of a string is UTF-8")
}

/// Returns a hash of one connection.
pub(super) fn connection_hash(conn: Conn) -> u64 {
    let mut hasher = DefaultHasher::new();
    conn.bits().hash(&mut hasher);
    hasher.finish()
}

/// Returns a hash that all members of a room share.
pub(super) fn room_hash(protocol: &str, member: &Member) -> u64 {
    let mut hasher = DefaultHasher::new();
    (protocol, member.room).hash(&mut hasher);
    hasher.finish()
}
