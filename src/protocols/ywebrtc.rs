//! y-webrtc: the signaling protocol of `y-webrtc`, which connects the editors of a Yjs document.
//!
//! It is publish and subscribe. A client subscribes to topics, which are the rooms of its documents, and a published
//! message goes to all subscribers of its topic, with their number. The server does not read what is published: it may
//! be encrypted. Clients have no ids, and the protocol has no error messages.
//!
//! The transcripts in `tests/transcripts/ywebrtc` show all messages.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::time::Duration;

use crate::config::Endpoint;
use crate::http::token::Claims;
use crate::json;
use crate::limits::{
    ROOM_TEXT_BYTES_MAX, SUBSCRIPTION_BYTES, SUBSCRIPTIONS_WORST_CASE_BYTES, TOPICS_PER_CONNECTION_MAX,
};
use crate::memory_budget::Reservation;
use crate::message::Message;
use crate::metrics::Counts;
use crate::protocol::{CloseCause, Conn, Context, Descriptor, Member, Protocol, Route, Target, TokenPlace};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::name_table::{NameTable, Named};
use crate::rate_limit::{Verdict, credits_for_deliveries};

/// All topics and clients.
pub struct YWebrtc {
    clients: ConnTable<Client>,
    /// Clients with at least one topic.
    subscriber_count: usize,
    topics: NameTable<Topic>,
    counts: Counts,
    /// Messages to subscribers: a message to N of them counts N.
    deliveries: u64,
}

struct Client {
    /// Indices of `topics`.
    topics: BTreeSet<u32>,
    /// The memory of its subscriptions. `None` without subscriptions.
    memory: Option<Reservation>,
    /// The claims of its token. `None`: all topics are allowed.
    claims: Option<Box<Claims>>,
    /// Whether it has sent a well-formed message.
    is_registered: bool,
    /// Whether it is logged that it has as many topics as it may have.
    is_limit_logged: bool,
}

/// A topic exists as long as it has subscribers.
struct Topic {
    name: Box<str>,
    subscribers: BTreeSet<Slot>,
}

impl Topic {
    fn new(name: &str) -> Topic {
        Topic { name: name.into(), subscribers: BTreeSet::new() }
    }
}

impl Named for Topic {
    fn name(&self) -> &str {
        &self.name
    }
}

/// A message of a client. `topics` is the raw value of that field, if there is one that is not `null`.
enum Request<'a> {
    Subscribe { topics: Option<&'a str> },
    Unsubscribe { topics: Option<&'a str> },
    Publish { topic: Cow<'a, str>, has_clients: bool },
    Ping,
}

/// Reasons for which a message or a topic is ignored.
const NOT_UNDERSTOOD: &str = "not_understood";
const TOO_MANY_TOPICS: &str = "too_many_topics";
const FORBIDDEN: &str = "forbidden";
const PEER_BUSY: &str = "peer_busy";
const RATE_LIMITED: &str = "rate_limited";

/// The field that the server sets in a published message.
const CLIENTS: &str = "clients";

/// The state of all clients in `/rooms`.
const SUBSCRIBED: &str = "subscribed";

/// Registers the protocol.
pub static DESCRIPTOR: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "y-webrtc",
        title: "y-webrtc",
        default_path: "/y-webrtc",
        is_always_on: false,
        has_rooms_below: false,
        ignores_path_below: true,
        may_be_root: true,
        has_large_queues: true,
        ends_without_close_frame: false,
        health_path: None,
        stored_bytes_max: SUBSCRIPTIONS_WORST_CASE_BYTES,
    },
    token_place: TokenPlace::RequestWithoutRoom,
    route: |_, _| Route::Room(String::new()),
    new: |_, key| Box::new(YWebrtc::new(key)),
};

impl Protocol for YWebrtc {
    fn on_connect(&mut self, conn: Conn, _: &Target, claims: Option<&Claims>, _: &mut Context) {
        let limits_topics = |claims: &&Claims| claims.room.is_some() || claims.room_prefix.is_some();
        let client = Client {
            topics: BTreeSet::new(),
            memory: None,
            claims: claims.filter(limits_topics).map(|claims| Box::new(claims.clone())),
            is_registered: false,
            is_limit_logged: false,
        };
        self.clients.insert(conn, client);
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        let Some(slot) = self.clients.find(conn) else { return };
        match message.text() {
            Some(text) => self.on_text(slot, text, context),
            None => self.counts.count_error(NOT_UNDERSTOOD),
        }
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {
        self.counts.count_error(RATE_LIMITED);
    }

    fn on_disconnect(&mut self, conn: Conn, _: &mut Context) {
        if let Some(slot) = self.clients.find(conn) {
            self.remove_client(slot);
        }
    }

    /// Messages name the topics, so that none is known at the upgrade. A server that drains takes no new client: it finds
    /// the others again when they have moved to another server.
    fn room_exists(&self, _: &Target) -> bool {
        false
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        self.clients.find(conn).map(|_| member(""))
    }

    fn members(&self, conn: Conn) -> Vec<Member<'_>> {
        let Some(slot) = self.clients.find(conn) else { return Vec::new() };
        let topics = self.clients[slot].topics.iter();
        topics.map(|topic| member(&self.topics[*topic].name)).collect()
    }

    fn room_count(&self, conn: Conn) -> Option<usize> {
        let slot = self.clients.find(conn)?;
        Some(self.clients[slot].topics.len())
    }

    fn counts(&self, _: Duration) -> Counts {
        Counts {
            peers: self.subscriber_count,
            rooms: self.topics.len(),
            deliveries: Some(self.deliveries),
            ..self.counts.clone()
        }
    }

    fn check(&self) {
        let mut subscriptions = 0;
        let mut subscribers = 0;
        for (slot, client) in self.clients.iter() {
            for topic in &client.topics {
                assert!(self.topics[*topic].subscribers.contains(&slot));
            }
            assert!(client.topics.len() <= TOPICS_PER_CONNECTION_MAX);
            assert_eq!(client.memory.is_some(), !client.topics.is_empty());
            subscriptions += client.topics.len();
            subscribers += usize::from(!client.topics.is_empty());
        }
        assert_eq!(subscribers, self.subscriber_count);
        self.topics.check();
        for (_, topic) in self.topics.iter() {
            assert!(!topic.subscribers.is_empty(), "a topic ends with its last subscriber");
            subscriptions -= topic.subscribers.len();
        }
        assert_eq!(subscriptions, 0, "topics and clients agree");
    }
}

impl YWebrtc {
    /// Creates the protocol without topics. `key` makes the hashes of their names unpredictable.
    pub fn new(key: RandomState) -> YWebrtc {
        YWebrtc {
            clients: ConnTable::NEW,
            subscriber_count: 0,
            topics: NameTable::new(key),
            counts: Counts::zero(
                &["subscribe", "unsubscribe", "publish", "ping"],
                &[NOT_UNDERSTOOD, TOO_MANY_TOPICS, FORBIDDEN, PEER_BUSY, RATE_LIMITED],
            ),
            deliveries: 0,
        }
    }

    // ---- Messages ----

    /// Handles a message. One that is not understood is counted and ignored.
    fn on_text(&mut self, slot: Slot, text: &str, context: &mut Context) {
        let Some(request) = parse(text) else {
            return self.counts.count_error(NOT_UNDERSTOOD);
        };
        let client = &mut self.clients[slot];
        if !client.is_registered {
            client.is_registered = true;
            context.registered(self.clients.conn(slot), "", "");
        }
        match request {
            Request::Subscribe { topics } => {
                self.counts.count_message("subscribe");
                self.for_each_topic(topics, |this, name| this.subscribe(slot, name, context));
            }
            Request::Unsubscribe { topics } => {
                self.counts.count_message("unsubscribe");
                self.for_each_topic(topics, |this, name| this.unsubscribe(slot, name));
            }
            Request::Publish { topic, has_clients } => {
                self.counts.count_message("publish");
                self.publish(slot, &topic, text, has_clients, context);
            }
            Request::Ping => {
                self.counts.count_message("ping");
                context.send(self.clients.conn(slot), r#"{"type":"pong"}"#.to_owned());
            }
        }
    }

    /// Calls a function for each valid topic of an array. A value that is no array is treated as an empty one.
    fn for_each_topic(&mut self, topics: Option<&str>, mut work: impl FnMut(&mut YWebrtc, &str)) {
        let Some(topics) = topics else { return };
        let is_array = json::parse_array(topics, |element| {
            match parse_topic(element) {
                Some(name) => work(self, &name),
                None => self.counts.count_error(NOT_UNDERSTOOD),
            }
            true
        });
        if is_array.is_none() {
            self.counts.count_error(NOT_UNDERSTOOD);
        }
    }

    fn subscribe(&mut self, slot: Slot, name: &str, context: &mut Context) {
        if !self.is_allowed(slot, name) {
            return self.counts.count_error(FORBIDDEN);
        }
        let existing = self.topics.find(name);
        let client = &mut self.clients[slot];
        if existing.is_some_and(|topic| client.topics.contains(&topic)) {
            return;
        }
        let is_full = client.topics.len() >= TOPICS_PER_CONNECTION_MAX;
        let memory = if is_full { None } else { context.reserve(subscription_bytes(name)) };
        let conn = self.clients.conn(slot);
        let Some(memory) = memory else {
            return self.reject_topic(slot, context);
        };
        let topic = existing.unwrap_or_else(|| self.topics.insert(Topic::new(name)));
        self.topics[topic].subscribers.insert(slot);
        let client = &mut self.clients[slot];
        self.subscriber_count += usize::from(client.topics.is_empty());
        client.topics.insert(topic);
        match &mut client.memory {
            Some(total) => total.absorb(memory),
            None => client.memory = Some(memory),
        }
        context.entered(conn, name);
    }

    /// Ignores a topic for which a client has no place, or the server no memory.
    fn reject_topic(&mut self, slot: Slot, context: &mut Context) {
        self.counts.count_error(TOO_MANY_TOPICS);
        let client = &mut self.clients[slot];
        if !client.is_limit_logged {
            client.is_limit_logged = true;
            context.limit_reached(self.clients.conn(slot), TOO_MANY_TOPICS);
        }
    }

    fn unsubscribe(&mut self, slot: Slot, name: &str) {
        let Some(topic) = self.topics.find(name) else { return };
        let client = &mut self.clients[slot];
        if !client.topics.remove(&topic) {
            return;
        }
        if client.topics.is_empty() {
            client.memory = None;
            self.subscriber_count -= 1;
        } else if let Some(memory) = &mut client.memory {
            memory.release(subscription_bytes(name));
        }
        self.remove_subscriber(topic, slot);
    }

    /// Sends a message to all subscribers of its topic, and so also to its sender if it is one of them.
    fn publish(&mut self, slot: Slot, name: &str, text: &str, has_clients: bool, context: &mut Context) {
        if !self.is_allowed(slot, name) {
            return self.counts.count_error(FORBIDDEN);
        }
        let Some(topic) = self.topics.find(name) else { return };
        let topic = &self.topics[topic];
        let count = topic.subscribers.len();
        let credits = credits_for_deliveries(count, text.len());
        match context.charge(self.clients.conn(slot), credits, text.len()) {
            Verdict::Pass => {}
            Verdict::Drop { .. } => return self.counts.count_error(RATE_LIMITED),
            Verdict::Close => return self.close(slot, CloseCause::RateLimited, context),
        }
        let message = set_clients(text, has_clients, count);
        let mut subscribers = topic.subscribers.iter().map(|slot| self.clients.conn(*slot));
        let rejected = context.broadcast(&mut subscribers, &message);
        self.deliveries += count as u64;
        self.counts.count_errors(PEER_BUSY, rejected);
    }

    /// Returns whether the token of a client permits a topic.
    fn is_allowed(&self, slot: Slot, name: &str) -> bool {
        self.clients[slot].claims.as_ref().is_none_or(|claims| claims.allows(name))
    }

    // ---- Clients and topics ----

    fn close(&mut self, slot: Slot, cause: CloseCause, context: &mut Context) {
        let conn = self.clients.conn(slot);
        if let Some(member) = self.member(conn) {
            context.close_member(conn, cause, &member, self.room_count(conn));
        }
        self.remove_client(slot);
    }

    fn remove_client(&mut self, slot: Slot) {
        let (_, client) = self.clients.remove(slot);
        self.subscriber_count -= usize::from(!client.topics.is_empty());
        for topic in client.topics {
            self.remove_subscriber(topic, slot);
        }
    }

    /// Removes a subscriber of a topic, and with the last one the topic.
    fn remove_subscriber(&mut self, index: u32, slot: Slot) {
        let topic = &mut self.topics[index];
        topic.subscribers.remove(&slot);
        if topic.subscribers.is_empty() {
            self.topics.remove(index);
        }
    }
}

fn member(room: &str) -> Member<'_> {
    Member { room, id: None, state: SUBSCRIBED }
}

/// Returns the memory of a subscription, as if its topic had no other one.
fn subscription_bytes(name: &str) -> usize {
    SUBSCRIPTION_BYTES + name.len()
}

fn parse(text: &str) -> Option<Request<'_>> {
    let mut message_type = None;
    let mut topic = None;
    let mut topics = None;
    let mut has_clients = false;
    json::parse_object(text, |key, value| match key {
        "type" => message_type = Some(value),
        "topic" => topic = Some(value),
        "topics" => topics = Some(value).filter(|value| *value != "null"),
        CLIENTS => has_clients = true,
        _ => {}
    })?;
    match &*json::parse_string(message_type?)? {
        "subscribe" => Some(Request::Subscribe { topics }),
        "unsubscribe" => Some(Request::Unsubscribe { topics }),
        "publish" => Some(Request::Publish { topic: parse_topic(topic?)?, has_clients }),
        "ping" => Some(Request::Ping),
        _ => None,
    }
}

/// Returns the name of a topic. `None`: it is no string, or is empty or too long.
fn parse_topic(value: &str) -> Option<Cow<'_, str>> {
    json::parse_string(value).filter(|name| (1..=ROOM_TEXT_BYTES_MAX).contains(&name.len()))
}

/// Returns a published message with this number of subscribers. All other fields stay as they were written.
fn set_clients(text: &str, has_clients: bool, count: usize) -> String {
    let object = match has_clients {
        true => json::remove_fields(text, CLIENTS).expect("a message that was parsed is an object").into(),
        false => Cow::Borrowed(text),
    };
    let fields = object.trim_ascii_end().strip_suffix('}').expect("an object ends with a brace");
    format!(r#"{fields},"{CLIENTS}":{count}}}"#)
}
