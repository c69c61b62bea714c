//! A naive model of Ayame's protocol, written from `src/protocols/README.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use noroshi::http::token::{Claims, Secrets, TokenError};
use noroshi::json;
use noroshi::limits::{AYAME_PING_EVERY, AYAME_WAITING_MAX};
use noroshi::protocol::{CloseCause, Conn, Target};

use super::context::{Context, Output, RoomMember, Rules};

pub struct Model {
    context: Context,
    secrets: Option<Secrets>,
    clients: BTreeMap<Conn, Client>,
    rooms: BTreeMap<String, Room>,
}

struct Client {
    state: State,
    /// Time of the next ping. `None` for a standalone client.
    ping_at: Option<Duration>,
    /// Whether it is probed because another client requests a seat of its room.
    is_probed: bool,
}

enum State {
    Nameless,
    Waiting(String),
    Seated(String),
}

#[derive(Default)]
struct Room {
    seated: Vec<Conn>,
    waiting: Vec<Conn>,
}

impl Model {
    pub fn new(rate: u32, secrets: Option<Secrets>) -> Model {
        Model { context: Context::new(rate), secrets, clients: BTreeMap::new(), rooms: BTreeMap::new() }
    }

    fn send(&mut self, to: Conn, text: String) {
        self.context.emit(to, Output::Text(text));
    }

    fn close(&mut self, conn: Conn, why: CloseCause) {
        self.context.close(conn, why);
        self.remove_peer(conn);
    }

    fn remove_peer(&mut self, conn: Conn) {
        let name = self.context.names.get(&conn).cloned();
        let client = self.clients.remove(&conn).expect("the connection is known");
        let left = match &client.state {
            State::Nameless => Output::Left(String::new(), None),
            State::Waiting(room) => Output::Left(room.clone(), None),
            State::Seated(room) => Output::Left(room.clone(), name),
        };
        self.context.emit(conn, left);
        match client.state {
            State::Nameless => {}
            State::Waiting(room) => {
                if let Some(room) = self.rooms.get_mut(&room) {
                    room.waiting.retain(|other| *other != conn);
                }
            }
            State::Seated(name) => {
                // A room ends with either of its members.
                let Some(room) = self.rooms.remove(&name) else { return };
                for other in room.seated.into_iter().filter(|other| *other != conn) {
                    if self.clients[&other].ping_at.is_some() {
                        self.send(other, r#"{"type":"bye"}"#.to_owned());
                    }
                    self.close(other, CloseCause::Finished);
                }
                for waiting in room.waiting {
                    self.take_seat(waiting, &name);
                }
            }
        }
    }

    fn reject_message(&mut self, conn: Conn) {
        self.context.count_error("not_understood");
        self.close(conn, CloseCause::Finished);
    }

    fn reject(&mut self, conn: Conn, error: &'static str, reason: &str) {
        self.context.count_error(error);
        self.send(conn, format!(r#"{{"type":"reject","reason":"{reason}"}}"#));
        self.close(conn, CloseCause::Finished);
    }

    fn register(&mut self, conn: Conn, fields: [Option<&str>; 5]) {
        self.context.count_message("register");
        let [room, client, key, signaling_key, standalone] = fields;
        let text = |field: Option<&str>| {
            field.map_or(Some(String::new()), |text| json::parse_string(text).map(String::from))
        };
        let (Some(room), Some(client), Some(key)) = (text(room), text(client), text(signaling_key.or(key)))
        else {
            return self.reject_message(conn);
        };
        let standalone = standalone.unwrap_or("false");
        if room.is_empty() || room.len() > 256 || !["true", "false"].contains(&standalone) {
            return self.reject_message(conn);
        }
        if let Err(fault) = self.open_with_token(&room, &client, &key) {
            self.context.emit(conn, Output::TokenRefused(fault));
            return self.reject(conn, "token_refused", fault.message());
        }
        if standalone == "true" {
            self.clients.get_mut(&conn).expect("the connection is known").ping_at = None;
        }
        self.take_seat(conn, &room);
    }

    fn open_with_token(&self, room: &str, client: &str, key: &str) -> Result<(), TokenError> {
        let Some(secrets) = &self.secrets else { return Ok(()) };
        if key.is_empty() {
            return Err(TokenError::Missing);
        }
        let claims = secrets.verify(key, self.context.now)?;
        if claims.room.is_some_and(|named| *named != *room) {
            return Err(TokenError::Room);
        }
        if claims.room_prefix.is_some_and(|prefix| !room.starts_with(&*prefix)) {
            return Err(TokenError::Room);
        }
        if claims.id.is_some_and(|named| *named != *client) {
            return Err(TokenError::Id);
        }
        Ok(())
    }

    fn take_seat(&mut self, conn: Conn, name: &str) {
        let room = self.rooms.entry(name.to_owned()).or_default();
        if room.seated.len() < 2 {
            room.seated.push(conn);
            let is_second = room.seated.len() == 2;
            self.clients.get_mut(&conn).expect("the connection is known").state =
                State::Seated(name.to_owned());
            self.context.emit(conn, Output::Registered(name.to_owned()));
            let id = self.context.names[&conn].clone();
            return self.send(
                conn,
                format!(
                    r#"{{"type":"accept","connectionId":"{id}","isExistClient":{is_second},"isExistUser":{is_second}}}"#
                ),
            );
        }
        if room.waiting.len() == AYAME_WAITING_MAX {
            return self.reject(conn, "full", "full");
        }
        room.waiting.push(conn);
        self.clients.get_mut(&conn).expect("the connection is known").state = State::Waiting(name.to_owned());
        for seated in room.seated.clone() {
            let client = self.clients.get_mut(&seated).expect("the connection is known");
            if !client.is_probed {
                client.is_probed = true;
                self.context.probe(seated);
            }
        }
    }
}

impl Rules for Model {
    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn connected(&mut self, conn: Conn, _: &Target, _: Option<&Claims>) {
        let ping_at = Some(self.context.now + AYAME_PING_EVERY);
        self.clients.insert(conn, Client { state: State::Nameless, ping_at, is_probed: false });
    }

    fn text(&mut self, conn: Conn, text: &str) {
        let names = ["type", "roomId", "clientId", "key", "signalingKey", "standalone"];
        let place = |key: &str| names.iter().position(|name| *name == key);
        let [kind, fields @ ..] = json::parse_fields(text, place).unwrap_or([None; 6]);
        let kind = kind.and_then(json::parse_string);
        let room = match &self.clients[&conn].state {
            State::Nameless => None,
            State::Waiting(_) if kind.as_deref() == Some("pong") => return,
            State::Waiting(_) => return self.reject_message(conn),
            State::Seated(room) => Some(room.clone()),
        };
        match (kind.as_deref(), room) {
            (Some("pong"), _) => {}
            (Some("register"), None) => self.register(conn, fields),
            (Some("connected"), Some(_)) => {
                if self.clients[&conn].ping_at.is_none() {
                    self.close(conn, CloseCause::Finished);
                }
            }
            (Some("offer" | "answer" | "candidate"), Some(room)) => {
                self.context.count_message("relayed");
                let other = self.rooms[&room].seated.iter().find(|other| **other != conn);
                let Some(&other) = other else { return };
                if !self.context.forward(other, vec![text.to_owned()]) {
                    self.context.count_error("peer_busy");
                }
            }
            _ => self.reject_message(conn),
        }
    }

    fn binary(&mut self, conn: Conn, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(conn, text),
            Err(_) => self.reject_message(conn),
        }
    }

    fn dropped(&mut self, _: Conn, _: bool) {
        self.context.count_error("rate_limited");
    }

    fn alive(&mut self, conn: Conn) {
        let client = self.clients.get_mut(&conn).expect("the connection is known");
        client.is_probed = false;
        let State::Seated(name) = &client.state else { panic!("only seated clients are probed") };
        let name = name.clone();
        if self.rooms[&name].seated.iter().any(|seated| self.clients[seated].is_probed) {
            return;
        }
        let waiting = std::mem::take(&mut self.rooms.get_mut(&name).expect("the client is seated").waiting);
        for conn in waiting {
            self.reject(conn, "full", "full");
        }
    }

    fn silent(&mut self, conn: Conn) {
        let client = self.clients.get_mut(&conn).expect("the connection is known");
        let State::Seated(name) = &client.state else { panic!("only seated clients are probed") };
        if self.rooms[name].waiting.is_empty() {
            client.is_probed = false;
        } else {
            self.close(conn, CloseCause::Replaced);
        }
    }

    fn disconnected(&mut self, conn: Conn) {
        if self.clients.contains_key(&conn) {
            self.remove_peer(conn);
        }
    }

    fn timer(&mut self) {
        let due = self.timer_due();
        let now = self.context.now;
        let (&conn, client) =
            self.clients.iter_mut().find(|(_, client)| client.ping_at == due).expect("one is due");
        client.ping_at = Some(now + AYAME_PING_EVERY);
        self.send(conn, r#"{"type":"ping"}"#.to_owned());
    }

    fn timer_due(&self) -> Option<Duration> {
        self.clients.values().filter_map(|client| client.ping_at).min()
    }

    fn member(&self, conn: Conn) -> Option<RoomMember> {
        Some(match &self.clients.get(&conn)?.state {
            State::Nameless => (String::new(), None, "nameless"),
            State::Waiting(room) => (room.clone(), None, "waiting"),
            State::Seated(room) => (room.clone(), Some(self.context.names[&conn].clone()), "seated"),
        })
    }

    fn counts(&self) -> (usize, usize) {
        let is_seated = |client: &&Client| matches!(client.state, State::Seated(_));
        (self.clients.values().filter(is_seated).count(), self.rooms.len())
    }
}
