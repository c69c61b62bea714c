//! A naive model of y-webrtc's protocol, written from `src/protocols/README.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use noroshi::http::token::Claims;
use noroshi::json;
use noroshi::protocol::{CloseCause, Conn, Target};
use noroshi::rate_limit::Verdict;

use super::context::{Context, Output, RoomMember, Rules, credits_for, credits_for_deliveries};

pub struct Model {
    context: Context,
    clients: BTreeMap<Conn, Client>,
    deliveries: u64,
}

#[derive(Default)]
struct Client {
    topics: BTreeSet<String>,
    /// The only topic, and the beginning of all topics, that its token permits.
    room: Option<String>,
    room_prefix: Option<String>,
    is_registered: bool,
    is_limit_logged: bool,
}

/// Returns keys and raw values of an object, in order.
fn fields(text: &str) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    json::parse_object(text, |key, value| fields.push((key.to_owned(), value.to_owned())))?;
    Some(fields)
}

/// Returns an object without the white space between its fields, so that it can be compared.
pub fn normalize(text: String) -> String {
    format!("{:?}", fields(&text))
}

impl Model {
    pub fn new(rate: u32) -> Model {
        Model { context: Context::new(rate), clients: BTreeMap::new(), deliveries: 0 }
    }

    fn subscribers(&self, topic: &str) -> Vec<Conn> {
        let subscribers = self.clients.iter().filter(|(_, client)| client.topics.contains(topic));
        subscribers.map(|(conn, _)| *conn).collect()
    }

    fn permits(&self, conn: Conn, topic: &str) -> bool {
        let client = &self.clients[&conn];
        client.room.as_ref().is_none_or(|room| room == topic)
            && client.room_prefix.as_ref().is_none_or(|prefix| topic.starts_with(prefix))
    }

    fn message(&mut self, conn: Conn, text: &str) -> Result<(), &'static str> {
        const INVALID: &str = "not_understood";
        let fields = fields(text).ok_or(INVALID)?;
        let last = |name: &str| fields.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value);
        let message_type = last("type").and_then(|text| json::parse_string(text)).ok_or(INVALID)?;
        let name = match &*message_type {
            "subscribe" => "subscribe",
            "unsubscribe" => "unsubscribe",
            "publish" => "publish",
            "ping" => "ping",
            _ => return Err(INVALID),
        };
        let topic = last("topic").and_then(|topic| parse_topic(topic));
        if name == "publish" && topic.is_none() {
            return Err(INVALID);
        }
        self.context.count_message(name);
        let client = self.clients.get_mut(&conn).expect("the client is connected");
        if !client.is_registered {
            client.is_registered = true;
            self.context.emit(conn, Output::Registered(String::new()));
        }
        match (name, topic) {
            ("ping", _) => {
                let pong = r#"{"type":"pong"}"#.to_owned();
                self.context.emit(conn, Output::Text(normalize(pong)));
            }
            ("publish", Some(topic)) => self.publish(conn, &topic, text, &fields)?,
            _ => {
                for topic in self.topics(last("topics").map(String::as_str)) {
                    if name == "subscribe" {
                        self.subscribe(conn, topic);
                    } else {
                        self.clients.get_mut(&conn).expect("it is connected").topics.remove(&topic);
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the valid topics of an array, and counts the others.
    fn topics(&mut self, array: Option<&str>) -> Vec<String> {
        let Some(array) = array.filter(|array| *array != "null") else { return Vec::new() };
        let mut elements = Vec::new();
        let is_array = json::parse_array(array, |element| {
            elements.push(parse_topic(element));
            true
        });
        if is_array.is_none() {
            self.context.count_error("not_understood");
        }
        for _ in elements.iter().filter(|element| element.is_none()) {
            self.context.count_error("not_understood");
        }
        elements.into_iter().flatten().collect()
    }

    fn subscribe(&mut self, conn: Conn, topic: String) {
        if !self.permits(conn, &topic) {
            return self.context.count_error("forbidden");
        }
        let client = self.clients.get_mut(&conn).expect("the client is connected");
        if client.topics.contains(&topic) {
            return;
        }
        if client.topics.len() == 1024 || !self.context.reserve() {
            self.context.count_error("too_many_topics");
            if !client.is_limit_logged {
                client.is_limit_logged = true;
                self.context.emit(conn, Output::LimitReached("too_many_topics"));
            }
            return;
        }
        self.context.emit(conn, Output::Entered(topic.clone()));
        client.topics.insert(topic);
    }

    fn publish(
        &mut self,
        conn: Conn,
        topic: &str,
        text: &str,
        fields: &[(String, String)],
    ) -> Result<(), &'static str> {
        if !self.permits(conn, topic) {
            return Err("forbidden");
        }
        let subscribers = self.subscribers(topic);
        let cost = credits_for_deliveries(subscribers.len(), text.len());
        let paid = credits_for(text.len());
        if cost > paid {
            match self.context.pay(conn, cost, paid) {
                Verdict::Pass => {}
                Verdict::Drop { .. } => return Err("rate_limited"),
                Verdict::Close => {
                    self.context.close(conn, CloseCause::RateLimited);
                    self.disconnected(conn);
                    return Ok(());
                }
            }
        }
        let mut fields = fields.to_vec();
        fields.retain(|(key, _)| key != "clients");
        fields.push(("clients".to_owned(), subscribers.len().to_string()));
        self.deliveries += subscribers.len() as u64;
        for subscriber in subscribers {
            if !self.context.forward(subscriber, vec![format!("{:?}", Some(&fields))]) {
                self.context.count_error("peer_busy");
            }
        }
        Ok(())
    }
}

fn parse_topic(value: &str) -> Option<String> {
    let topic = json::parse_string(value)?;
    (!topic.is_empty() && topic.len() <= 256).then(|| topic.into_owned())
}

impl Rules for Model {
    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn connected(&mut self, conn: Conn, _: &Target, claims: Option<&Claims>) {
        let text = |claim: &Option<Box<str>>| claim.as_deref().map(str::to_owned);
        let client = Client {
            room: claims.and_then(|claims| text(&claims.room)),
            room_prefix: claims.and_then(|claims| text(&claims.room_prefix)),
            ..Client::default()
        };
        self.clients.insert(conn, client);
    }

    fn text(&mut self, conn: Conn, text: &str) {
        if let Err(error) = self.message(conn, text) {
            self.context.count_error(error);
        }
    }

    fn binary(&mut self, conn: Conn, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(conn, text),
            Err(_) => self.context.count_error("not_understood"),
        }
    }

    fn dropped(&mut self, _: Conn, _: bool) {
        self.context.count_error("rate_limited");
    }

    fn alive(&mut self, _: Conn) {
        unreachable!("y-webrtc has no probes");
    }

    fn silent(&mut self, _: Conn) {
        unreachable!("y-webrtc has no probes");
    }

    fn disconnected(&mut self, conn: Conn) {
        if self.clients.remove(&conn).is_some() {
            self.context.emit(conn, Output::Left(String::new(), None));
        }
    }

    fn timer(&mut self) {
        unreachable!("there are no timers");
    }

    fn timer_due(&self) -> Option<Duration> {
        None
    }

    fn room_exists(&self, _: &Target) -> bool {
        false
    }

    fn member(&self, conn: Conn) -> Option<RoomMember> {
        self.clients.contains_key(&conn).then(|| (String::new(), None, "subscribed"))
    }

    fn members(&self, conn: Conn) -> Vec<RoomMember> {
        let topics = self.clients[&conn].topics.iter();
        topics.map(|topic| (topic.clone(), None, "subscribed")).collect()
    }

    fn counts(&self) -> (usize, usize) {
        let subscribed = self.clients.values().filter(|client| !client.topics.is_empty()).count();
        let topics: BTreeSet<&String> = self.clients.values().flat_map(|client| &client.topics).collect();
        (subscribed, topics.len())
    }

    fn deliveries(&self) -> Option<u64> {
        Some(self.deliveries)
    }

    fn stored_bytes(&self) -> usize {
        self.clients.values().flat_map(|client| &client.topics).map(String::len).sum()
    }
}
