//! A naive model of GStreamer's protocol, written from `src/protocols/README.md`.

use std::time::Duration;

use noroshi::http::token::Claims;
use noroshi::json;
use noroshi::protocol::{CloseCause, Conn, Target};
use noroshi::rate_limit::Verdict;
use serde_json::{Value, json};

use super::context::{Context, Output, RoomMember, Rules, credits_for, credits_for_deliveries};

pub struct Model {
    context: Context,
    /// In the order of their connections.
    peers: Vec<Peer>,
    /// In the order of their starts.
    sessions: Vec<Session>,
    /// Counts listings, for the order of lists.
    listings: usize,
    /// The id of the session that the server has started in this input.
    new_session: Option<String>,
}

struct Peer {
    conn: Conn,
    room: String,
    id: String,
    roles: Vec<String>,
    /// JSON text.
    meta: String,
    has_status: bool,
    has_spoken: bool,
    is_v1_1: bool,
    listing: usize,
}

#[derive(Clone)]
struct Session {
    id: String,
    producer: Conn,
    consumer: Conn,
}

/// Parses a message of the server as a native client does, and writes it in one notation. The text of errors is free.
pub fn normalize(text: String) -> String {
    let mut value: Value = serde_json::from_str(&text).expect("native clients can parse every message");
    if value["type"] == "error" {
        assert!(value["details"].is_string());
        value["details"] = "*".into();
    }
    value.to_string()
}

/// Why a message has no further effect.
enum End {
    /// It is counted, and ignored.
    Ignored(&'static str),
    /// It is counted, and answered with `error`.
    Refused(&'static str),
    /// The connection is closed.
    Closed,
}

const NOT_UNDERSTOOD: End = End::Ignored("not_understood");

impl Peer {
    fn has(&self, role: &str) -> bool {
        self.roles.iter().any(|it| it == role)
    }

    fn listed_role(&self) -> Option<&'static str> {
        ["producer", "consumer"].into_iter().find(|role| self.has(role))
    }

    fn state(&self) -> &'static str {
        match (self.listed_role(), self.has("listener")) {
            (Some("producer"), false) => "producer",
            (Some("producer"), true) => "producer+listener",
            (Some(_), false) => "consumer",
            (Some(_), true) => "consumer+listener",
            (None, true) => "listener",
            (None, false) => "peer",
        }
    }

    fn entry(&self) -> Value {
        json!({"id": self.id, "meta": value(&self.meta)})
    }

    fn status_changed(&self, roles: &[String]) -> Value {
        json!({"type": "peerStatusChanged", "roles": roles, "meta": value(&self.meta), "peerId": self.id})
    }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("it was parsed before")
}

/// Returns the text of a field, if it is a string.
fn string(text: Option<&String>) -> Result<String, End> {
    match text.and_then(|text| serde_json::from_str(text).ok()) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(NOT_UNDERSTOOD),
    }
}

/// Returns the levels of arrays and objects.
fn levels(value: &Value) -> usize {
    let inner = match value {
        Value::Array(elements) => elements.iter().map(levels).max(),
        Value::Object(fields) => fields.values().map(levels).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

/// Returns the bytes that a description is counted for.
fn meta_bytes(meta: &str) -> usize {
    if meta == "null" { 0 } else { meta.len() }
}

/// The fields of a JSON object, in order, with their raw values.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(text: &str) -> Result<Fields, End> {
        let mut fields = Vec::new();
        json::parse_object(text, |key, value| fields.push((key.to_owned(), value.to_owned())))
            .ok_or(NOT_UNDERSTOOD)?;
        Ok(Fields(fields))
    }

    /// Returns the last value of a field.
    fn get(&self, name: &str) -> Option<&String> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The same, without `null`.
    fn get_some(&self, name: &str) -> Option<&String> {
        self.get(name).filter(|value| *value != "null")
    }
}

impl Model {
    pub fn new(rate: u32) -> Model {
        Model {
            context: Context::new(rate),
            peers: Vec::new(),
            sessions: Vec::new(),
            listings: 0,
            new_session: None,
        }
    }

    /// Returns the id of one of the sessions.
    pub fn session_id(&self, selector: usize) -> Option<&str> {
        let index = selector.checked_rem(self.sessions.len())?;
        Some(&self.sessions[index].id)
    }

    fn peer(&self, conn: Conn) -> &Peer {
        self.peers.iter().find(|peer| peer.conn == conn).expect("the peer is connected")
    }

    fn peer_mut(&mut self, conn: Conn) -> &mut Peer {
        self.peers.iter_mut().find(|peer| peer.conn == conn).expect("the peer is connected")
    }

    fn send(&mut self, to: Conn, message: Value) {
        self.context.emit(to, Output::Text(message.to_string()));
    }

    fn pay(&mut self, conn: Conn, cost: usize, paid: usize) -> Result<(), End> {
        if cost <= paid {
            return Ok(());
        }
        match self.context.pay(conn, cost, paid) {
            Verdict::Pass => Ok(()),
            Verdict::Drop { .. } => Err(End::Ignored("rate_limited")),
            Verdict::Close => Err(End::Closed),
        }
    }

    fn close(&mut self, conn: Conn, cause: CloseCause) {
        self.context.close(conn, cause);
        self.disconnected(conn);
    }

    fn message(&mut self, conn: Conn, text: &str) -> Result<(), End> {
        let fields = Fields::parse(text)?;
        let paid = credits_for(text.len());
        match &*string(fields.get("type"))? {
            "setProtocolVersion" => {
                let version = string(fields.get("version"))?;
                if version != "v1_0" && version != "v1_1" {
                    return Err(NOT_UNDERSTOOD);
                }
                self.context.count_message("setProtocolVersion");
                let peer = self.peer_mut(conn);
                if peer.has_spoken {
                    return Err(End::Refused("late_version"));
                }
                peer.has_spoken = true;
                peer.is_v1_1 = version == "v1_1";
                Ok(())
            }
            "setPeerStatus" => self.set_peer_status(conn, &fields, paid),
            "list" => self.list(conn, "list", "producers", "producer", paid),
            "listConsumers" => self.list(conn, "listConsumers", "consumers", "consumer", paid),
            "startSession" => {
                let to = string(fields.get("peerId"))?;
                let offer = match fields.get_some("offer") {
                    None => Value::Null,
                    offer => Value::String(description(offer)?),
                };
                self.understood(conn, "startSession");
                self.start_session(conn, &to, offer, paid)
            }
            "endSession" => {
                let session = string(fields.get("sessionId"))?;
                self.understood(conn, "endSession");
                self.end_session(conn, &session, Value::Null)
            }
            "endSessionV1_1" => {
                let session = string(fields.get("sessionId"))?;
                let error = match fields.get_some("error") {
                    None => Value::Null,
                    error => Value::String(c_string(error)?),
                };
                self.understood(conn, "endSessionV1_1");
                self.end_session(conn, &session, error)
            }
            "peer" => {
                let session = string(fields.get("sessionId"))?;
                let content = match (fields.get("sdp"), fields.get("ice")) {
                    (Some(sdp), None) => {
                        let sdp = Fields::parse(sdp)?;
                        let kind = string(sdp.get("type"))?;
                        if kind != "offer" && kind != "answer" {
                            return Err(NOT_UNDERSTOOD);
                        }
                        json!({"sdp": {"type": kind, "sdp": description(sdp.get("sdp"))?}})
                    }
                    (None, Some(ice)) => {
                        let ice = Fields::parse(ice)?;
                        let candidate = c_string(ice.get("candidate"))?;
                        let index =
                            ice.get("sdpMLineIndex").and_then(|index| serde_json::from_str(index).ok());
                        let index: u32 = index.ok_or(NOT_UNDERSTOOD)?;
                        json!({"ice": {"candidate": candidate, "sdpMLineIndex": index}})
                    }
                    _ => return Err(NOT_UNDERSTOOD),
                };
                self.understood(conn, "peer");
                self.relay(conn, &session, content)
            }
            _ => Err(NOT_UNDERSTOOD),
        }
    }

    fn understood(&mut self, conn: Conn, name: &'static str) {
        self.context.count_message(name);
        self.peer_mut(conn).has_spoken = true;
    }

    fn list(
        &mut self,
        conn: Conn,
        kind: &'static str,
        field: &str,
        role: &str,
        paid: usize,
    ) -> Result<(), End> {
        self.understood(conn, kind);
        let room = &self.peer(conn).room;
        let mut listed: Vec<&Peer> =
            self.peers.iter().filter(|peer| peer.room == *room && peer.has(role)).collect();
        listed.sort_by_key(|peer| peer.listing);
        let entries: Vec<Value> = listed.iter().map(|peer| peer.entry()).collect();
        let raw_entry = |peer: &&Peer| {
            Value::from(&*peer.id).to_string().len() + r#"{"id":,"meta":},"#.len() + peer.meta.len()
        };
        let bytes = format!(r#"{{"type":"{kind}","{field}":[]}}"#).len()
            + listed.iter().map(raw_entry).sum::<usize>();
        self.pay(conn, credits_for(bytes), paid)?;
        self.send(conn, json!({"type": kind, field: entries}));
        Ok(())
    }

    fn set_peer_status(&mut self, conn: Conn, fields: &Fields, paid: usize) -> Result<(), End> {
        let roles: Vec<String> =
            fields.get("roles").and_then(|roles| serde_json::from_str(roles).ok()).ok_or(NOT_UNDERSTOOD)?;
        let is_role = |role: &String| ["producer", "consumer", "listener"].contains(&role.as_str());
        if roles.len() > 16 || !roles.iter().all(is_role) {
            return Err(NOT_UNDERSTOOD);
        }
        let peer_id = match fields.get_some("peerId") {
            None => None,
            id => Some(string(id)?),
        };
        let meta = fields.get("meta").cloned().unwrap_or("null".to_owned());
        let is_accepted = |meta: &str| {
            let is_parsed = serde_json::from_str(meta).is_ok_and(|meta| levels(&meta) <= 100);
            is_parsed && !meta.contains(r"\u0000")
        };
        if meta.len() <= 16_384 && !is_accepted(&meta) {
            return Err(NOT_UNDERSTOOD);
        }
        self.understood(conn, "setPeerStatus");
        let has = |role: &str| roles.iter().any(|it| it == role);
        if has("producer") && has("consumer") {
            return Err(End::Refused("both_roles"));
        }
        let peer = self.peer(conn);
        let expected_id = peer.has_status.then(|| peer.id.clone());
        if peer_id == expected_id && peer.roles == roles && peer.meta == meta {
            return Ok(());
        }
        let room = peer.room.clone();
        let others = || self.peers.iter().filter(|it| it.room == room && it.conn != conn);
        let room_meta_bytes: usize = others().map(|peer| meta_bytes(&peer.meta)).sum();
        if meta.len() > 16_384 || room_meta_bytes + meta_bytes(&meta) > 131_072 {
            return Err(End::Refused("too_many"));
        }
        let listeners = others().filter(|peer| peer.has("listener")).count() + usize::from(has("listener"));
        let notice = format!(
            r#"{{"type":"peerStatusChanged","roles":{},"meta":{meta},"peerId":{}}}"#,
            json!(roles),
            json!(peer.id)
        );
        if meta_bytes(&meta) > 0 && !self.context.reserve() {
            return Err(End::Refused("too_many"));
        }
        self.pay(conn, paid + credits_for_deliveries(listeners, notice.len()), paid)?;
        for role in ["producer", "consumer"] {
            if self.peer(conn).has(role) && !has(role) {
                self.end_sessions(conn, role);
            }
        }
        let role_before = self.peer(conn).listed_role();
        let next_listing = self.listings + 1;
        let peer = self.peer_mut(conn);
        peer.roles = roles;
        peer.meta = meta;
        peer.has_status = true;
        if peer.listed_role() != role_before {
            peer.listing = next_listing;
            self.listings = next_listing;
        }
        let peer = self.peer(conn);
        let notice = peer.status_changed(&peer.roles);
        self.notify(&room, notice);
        Ok(())
    }

    fn notify(&mut self, room: &str, notice: Value) {
        let listeners = self.peers.iter().filter(|peer| peer.room == room && peer.has("listener"));
        let listeners: Vec<Conn> = listeners.map(|peer| peer.conn).collect();
        for listener in listeners {
            if !self.context.forward(listener, vec![notice.to_string()]) {
                self.context.count_error("peer_busy");
            }
        }
    }

    fn start_session(&mut self, conn: Conn, to: &str, offer: Value, paid: usize) -> Result<(), End> {
        let room = &self.peer(conn).room;
        let is_it = |peer: &&Peer| peer.room == *room && peer.id == to && peer.conn != conn;
        let Some(to) = self.peers.iter().find(is_it) else { return Err(End::Refused("unknown_peer")) };
        let (producer, consumer) = match to.listed_role() {
            Some("producer") => (to.conn, conn),
            Some(_) => (conn, to.conn),
            None => return Err(End::Refused("unknown_peer")),
        };
        let to = to.conn;
        let count = |is_counted: &dyn Fn(&Session) -> bool| {
            self.sessions.iter().filter(|session| is_counted(session)).count()
        };
        if count(&|session| session.producer == producer && session.consumer == consumer) >= 8
            || count(&|session| session.consumer == consumer) >= 64
            || count(&|session| session.producer == producer) >= 1024
        {
            return Err(End::Refused("too_many"));
        }
        if !self.context.reserve() {
            return Err(End::Refused("too_many"));
        }
        self.pay(conn, paid + 1, paid)?;
        let id = self.new_session.take().expect("the server has started a session");
        let started = json!({"type": "sessionStarted", "peerId": self.peer(producer).id, "sessionId": id});
        let start = json!({
            "type": "startSession",
            "peerId": self.peer(consumer).id,
            "sessionId": id,
            "offer": offer,
        });
        let (to_other, to_sender) = if producer == to { (start, started) } else { (started, start) };
        let is_queued = self.context.forward(to, vec![to_other.to_string()]);
        self.send(conn, to_sender);
        let session = Session { id, producer, consumer };
        if is_queued {
            self.sessions.push(session);
            return Ok(());
        }
        self.send_end(conn, &session.id, busy());
        Err(End::Ignored("peer_busy"))
    }

    /// Finds a session whose peers are in the room of this one.
    fn session(&self, conn: Conn, id: &str) -> Result<Session, End> {
        let session = self.sessions.iter().find(|session| session.id == id);
        let is_here = |session: &&Session| self.peer(session.producer).room == self.peer(conn).room;
        session.filter(is_here).cloned().ok_or(End::Ignored("unknown_session"))
    }

    fn relay(&mut self, conn: Conn, session: &str, mut content: Value) -> Result<(), End> {
        let session = self.session(conn, session)?;
        let other = match conn {
            _ if conn == session.producer => session.consumer,
            _ if conn == session.consumer => session.producer,
            _ => return Err(End::Refused("not_in_session")),
        };
        if conn == session.consumer && content["sdp"]["type"] == "offer" {
            return Err(End::Refused("consumer_offer"));
        }
        content["type"] = "peer".into();
        content["sessionId"] = session.id.as_str().into();
        if self.context.forward(other, vec![content.to_string()]) {
            return Ok(());
        }
        self.sessions.retain(|it| it.id != session.id);
        self.send_end(session.producer, &session.id, busy());
        self.send_end(session.consumer, &session.id, busy());
        Err(End::Ignored("peer_busy"))
    }

    fn end_session(&mut self, conn: Conn, session: &str, error: Value) -> Result<(), End> {
        let session = self.session(conn, session)?;
        let other = match conn {
            _ if conn == session.producer => session.consumer,
            _ if conn == session.consumer => session.producer,
            _ => return Err(End::Ignored("not_in_session")),
        };
        self.sessions.retain(|it| it.id != session.id);
        self.send_end(other, &session.id, error);
        Ok(())
    }

    /// Ends the sessions in which a peer has this role.
    fn end_sessions(&mut self, conn: Conn, role: &str) {
        let has_role = |session: &Session| {
            (if role == "producer" { session.producer } else { session.consumer }) == conn
        };
        let ended: Vec<Session> = self.sessions.iter().filter(|session| has_role(session)).cloned().collect();
        self.sessions.retain(|session| !has_role(session));
        for session in ended {
            let other = if session.producer == conn { session.consumer } else { session.producer };
            self.send_end(other, &session.id, Value::Null);
        }
    }

    fn send_end(&mut self, to: Conn, session: &str, error: Value) {
        let message = match self.peer(to).is_v1_1 {
            true => json!({"type": "endSessionV1_1", "sessionId": session, "error": error}),
            false => json!({"type": "endSession", "sessionId": session}),
        };
        self.send(to, message);
    }
}

fn busy() -> Value {
    "the receiver of a message reads too slowly".into()
}

/// Returns a text that a string in C can hold.
fn c_string(text: Option<&String>) -> Result<String, End> {
    let text = string(text)?;
    if text.contains('\0') { Err(NOT_UNDERSTOOD) } else { Ok(text) }
}

/// Returns a description, which is not empty.
fn description(text: Option<&String>) -> Result<String, End> {
    let text = c_string(text)?;
    if text.is_empty() { Err(NOT_UNDERSTOOD) } else { Ok(text) }
}

impl Rules for Model {
    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn learn(&mut self, outputs: &[(Conn, Output)]) {
        self.new_session = None;
        for (_, output) in outputs {
            let Output::Text(text) = output else { continue };
            // One of the two may not fit into the queue of its receiver.
            let kinds = [r#"{"type":"sessionStarted""#, r#"{"type":"startSession""#];
            if kinds.iter().any(|kind| text.starts_with(kind)) {
                let message: Value = serde_json::from_str(text).expect("messages are JSON");
                let id = message["sessionId"].as_str().expect("a session has an id").to_owned();
                let is_new = |session: &Session| session.id != id;
                assert!(self.sessions.iter().all(is_new), "ids are not reused");
                self.new_session = Some(id);
            }
        }
    }

    fn connected(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>) {
        let sub = claims.and_then(|claims| claims.id.as_deref());
        let is_holder = |peer: &&Peer| peer.room == target.room && Some(&*peer.id) == sub;
        if let Some(holder) = self.peers.iter().find(is_holder).map(|peer| peer.conn) {
            self.close(holder, CloseCause::Replaced);
        }
        let id = match sub {
            Some(id) => id.to_owned(),
            None => self.context.names[&conn].clone(),
        };
        assert!(self.peers.iter().all(|peer| peer.room != target.room || peer.id != id), "ids are unique");
        self.context.emit(conn, Output::Registered(target.room.clone()));
        self.send(conn, json!({"type": "welcome", "peerId": id}));
        self.peers.push(Peer {
            conn,
            room: target.room.clone(),
            id,
            roles: Vec::new(),
            meta: "null".to_owned(),
            has_status: false,
            has_spoken: false,
            is_v1_1: false,
            listing: 0,
        });
    }

    fn text(&mut self, conn: Conn, text: &str) {
        match self.message(conn, text) {
            Ok(()) => {}
            Err(End::Ignored(error)) => self.context.count_error(error),
            Err(End::Refused(error)) => {
                self.context.count_error(error);
                self.send(conn, json!({"type": "error", "details": "*"}));
            }
            Err(End::Closed) => self.close(conn, CloseCause::RateLimited),
        }
    }

    fn binary(&mut self, _: Conn, _: &[u8]) {
        self.context.count_error("not_understood");
    }

    fn dropped(&mut self, _: Conn, _: bool) {
        self.context.count_error("rate_limited");
    }

    fn alive(&mut self, _: Conn) {
        unreachable!("this protocol has no probes");
    }

    fn silent(&mut self, _: Conn) {
        unreachable!("this protocol has no probes");
    }

    fn disconnected(&mut self, conn: Conn) {
        if !self.peers.iter().any(|peer| peer.conn == conn) {
            return;
        }
        self.end_sessions(conn, "consumer");
        self.end_sessions(conn, "producer");
        let index = self.peers.iter().position(|peer| peer.conn == conn).expect("it is connected");
        let peer = self.peers.remove(index);
        self.notify(&peer.room, peer.status_changed(&[]));
        self.context.emit(conn, Output::Left(peer.room, Some(peer.id)));
    }

    fn timer(&mut self) {
        unreachable!("there are no timers");
    }

    fn timer_due(&self) -> Option<Duration> {
        None
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.peers.iter().any(|peer| peer.room == target.room)
    }

    fn member(&self, conn: Conn) -> Option<RoomMember> {
        let peer = self.peers.iter().find(|peer| peer.conn == conn)?;
        Some((peer.room.clone(), Some(peer.id.clone()), peer.state()))
    }

    fn counts(&self) -> (usize, usize) {
        let mut rooms: Vec<&String> = self.peers.iter().map(|peer| &peer.room).collect();
        rooms.sort();
        rooms.dedup();
        (self.peers.len(), rooms.len())
    }

    fn gauges(&self) -> Vec<(&'static str, usize)> {
        let producers = self.peers.iter().filter(|peer| peer.has("producer")).count();
        vec![("producers", producers), ("sessions", self.sessions.len())]
    }

    fn stored_bytes(&self) -> usize {
        let meta: usize = self.peers.iter().map(|peer| meta_bytes(&peer.meta)).sum();
        meta + self.sessions.iter().map(|session| session.id.len()).sum::<usize>()
    }
}
