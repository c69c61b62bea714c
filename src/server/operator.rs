//! What an operator asks: the metrics, and who is in which room.

use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Server, clock};
use crate::http::{self, AdminRequest, AdminTopic, Response};
use crate::json;
use crate::limits::{MEMBERS_LISTED_MAX, ROOMS_BYTES_MAX};
use crate::protocol::{Conn, Member, ProtocolId};

impl Server {
    /// The answer to a question.
    pub(super) fn answer_operator(&mut self, question: &AdminRequest) -> Response {
        let text = match &question.topic {
            AdminTopic::Metrics => self.metrics(),
            AdminTopic::Rooms { room, after } => self.rooms(room.as_deref(), *after),
        };
        http::render_admin_response(question, &text)
    }

    /// The metrics, with the counts of others in them.
    fn metrics(&mut self) -> String {
        let metrics = &mut self.connections.shared.metrics;
        metrics.connections = self.connections.upgraded;
        metrics.started = self.clock.epoch();
        metrics.descriptors = clock::descriptors();
        let now = self.clock.now();
        let counts = self.dispatcher.each().map(|(dialect, protocol)| (dialect.name(), protocol.counts(now)));
        metrics.protocols = counts.collect();
        metrics.render()
    }

    /// A page of the list of all members by rooms, or of those in rooms of this name, from behind a place in it. Rooms are
    /// in no order that means anything, but in the same on all pages.
    fn rooms(&self, name: Option<&str>, after: Option<(u64, u64)>) -> String {
        // The first that are behind that place, as many as may be on a page.
        let (mut first, mut more) = (BinaryHeap::new(), false);
        for (_, entry) in &self.connections.entries {
            let Some((dialect, member)) = self.dispatcher.member(entry.conn) else { continue };
            let place = (number(dialect, &member), entry.conn.bits());
            if after.is_none_or(|after| after < place) && name.is_none_or(|name| name == member.room) {
                first.push(place);
            }
            if first.len() > MEMBERS_LISTED_MAX {
                first.pop();
                more = true;
            }
        }
        // What each room begins with, and its members.
        let mut rooms: Vec<(String, Vec<String>)> = Vec::new();
        let (mut bytes, mut last) = (0, None);
        for place in first.into_sorted_vec() {
            if bytes > ROOMS_BYTES_MAX {
                more = true;
                break;
            }
            let entry = &self.connections.entries[Conn::from_bits(place.1).slot()];
            let (dialect, Member { room, id, state }) =
                self.dispatcher.member(entry.conn).expect("it was here just now");
            let begin = format!(r#"{{"protocol":"{}","room":{},"members":["#, dialect.name(), quoted(room));
            if rooms.last().is_none_or(|last| last.0 != begin) {
                bytes += begin.len();
                rooms.push((begin, Vec::new()));
            }
            let member = format!(
                r#"{{"connection":{},"id":{},"state":"{state}","address":"{}","since":{}}}"#,
                entry.conn.number(),
                id.map_or("null".to_owned(), |id| quoted(&id)),
                entry.address,
                (self.clock.epoch() + entry.since.get()).as_secs(),
            );
            bytes += member.len();
            rooms.last_mut().expect("there is one by now").1.push(member);
            last = Some(place);
        }
        let rooms: Vec<String> =
            rooms.iter().map(|(begin, members)| format!("{begin}{}]}}", members.join(","))).collect();
        let next = last.filter(|_| more).map(|(number, bits)| format!(r#""{number:x}.{bits:x}""#));
        format!(r#"{{"rooms":[{}],"next":{}}}"#, rooms.join(","), next.as_deref().unwrap_or("null"))
    }
}

fn quoted(text: &str) -> String {
    let mut json = Vec::new();
    json::push_string(&mut json, text);
    String::from_utf8(json).expect("text stays text")
}

/// A number that all in one room share, and that says nothing of it.
pub(super) fn number(dialect: ProtocolId, member: &Member) -> u64 {
    let mut hasher = DefaultHasher::new();
    (dialect as u8, member.room).hash(&mut hasher);
    hasher.finish()
}
