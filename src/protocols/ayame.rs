//! Ayame: the signaling protocol of OpenAyame, for its web SDK and for momo.
//!
//! A room has two seats. Offers, answers and candidates of one member are relayed to the other. When one of the two leaves,
//! the server closes the other and the room ends. When a third client registers, the server probes both
//! members; the third client is rejected as `full` only if both show life.
//!
//! The transcripts in `tests/transcripts/ayame` show all messages.

use std::collections::HashMap;
use std::hash::RandomState;
use std::rc::Rc;
use std::time::Duration;

use crate::config::{Config, Endpoint};
use crate::http::token::{Claims, Secrets};
use crate::json;
use crate::limits::{AYAME_PING_EVERY, AYAME_WAITING_MAX, ROOM_TEXT_BYTES_MAX};
use crate::message::Message;
use crate::metrics::Counts;
use crate::protocol::{CloseCause, Conn, Context, Descriptor, Member, Protocol, Route, Target, TokenPlace};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::ice::IceServers;
use crate::protocols::list::{List, ListNodes};
use crate::protocols::uuid::UuidCodec;
use crate::timestamp::Timestamp;

/// All rooms and clients.
pub struct Ayame {
    uuids: UuidCodec,
    ice: IceServers,
    /// `None`: no tokens are required.
    token_secrets: Option<Secrets>,
    clients: ConnTable<Client>,
    rooms: HashMap<Rc<str>, Room>,
    /// The clients that are pinged, in the order of [`Client::ping_at`].
    ping_queue: List,
    /// Links of `ping_queue`.
    list_nodes: ListNodes,
    counts: Counts,
}

struct Client {
    membership: Membership,
    /// Whether the client needs the server only until the peers are connected. It gets no pings and no `bye`.
    is_standalone: bool,
    /// Whether a probe is running: a third client came and this one has not shown life since.
    is_probed: bool,
    ping_at: Timestamp,
    /// When the token expires, since 1970; `None` without a token.
    token_expires_at: Option<Duration>,
}

/// The relation of a client to a room.
enum Membership {
    /// It has not sent `register`.
    Unregistered,
    /// It waits until the probes of the two members end.
    Waiting(Rc<str>),
    /// It has one of the two seats.
    Seated(Rc<str>),
}

#[derive(Default)]
struct Room {
    /// The clients with a seat: one or two.
    members: Vec<Slot>,
    /// The clients that wait for the probes of the members, first come first.
    waiting: Vec<Slot>,
}

/// Seats of a room.
const SEATS: usize = 2;

/// The fields of a message that the server reads. Relayed messages are passed on with all their fields.
const FIELDS: [&str; 6] = ["type", "roomId", "clientId", "key", "signalingKey", "standalone"];

/// Reason of a rejection, also counted as an error of this name.
const FULL: &str = "full";

/// Registers the protocol.
pub static DESCRIPTOR: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "ayame",
        title: "Ayame",
        default_path: "/signaling",
        is_always_on: false,
        has_rooms_below: false,
        ignores_path_below: false,
        may_be_root: false,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: Some("/.ok"),
        stored_bytes_max: 0,
    },
    // Clients send it in their first message, with the room.
    token_place: TokenPlace::Message,
    route: |below, _| match below {
        None => Route::Room(String::new()),
        Some(_) => Route::Unknown,
    },
    new: |config, key| Box::new(Ayame::new(config, key)),
};

impl Protocol for Ayame {
    fn on_connect(&mut self, conn: Conn, _: &Target, _: Option<&Claims>, context: &mut Context) {
        self.add_client(conn, context);
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        if let Some(slot) = self.clients.find(conn) {
            // An empty text is not understood.
            self.on_text(slot, message.text().unwrap_or_default(), context);
        }
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {
        self.counts.count_error("rate_limited");
    }

    fn on_alive(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.clients.find(conn) {
            self.on_probe_answered(slot, context);
        }
    }

    fn on_silent(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.clients.find(conn) {
            self.on_probe_failed(slot, context);
        }
    }

    fn on_disconnect(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.clients.find(conn) {
            self.remove_client(slot, context);
        }
    }

    fn on_timer(&mut self, context: &mut Context) {
        self.ping_first_client(context);
    }

    fn next_timer(&self) -> Option<Duration> {
        let first = self.ping_queue.first()?;
        Some(self.clients[first].ping_at.get())
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let slot = self.clients.find(conn)?;
        let member = match &self.clients[slot].membership {
            Membership::Unregistered => Member { room: "", id: None, state: "nameless" },
            Membership::Waiting(room) => Member { room, id: None, state: "waiting" },
            Membership::Seated(room) => {
                let id = self.uuids.encode(conn).into();
                Member { room, id: Some(id), state: "seated" }
            }
        };
        Some(member)
    }

    fn renew(&mut self, config: &Config) {
        self.ice = IceServers::new(config);
        self.token_secrets = config.token_secrets.clone();
    }

    fn counts(&self, _: Duration) -> Counts {
        let peers = self.rooms.values().map(|room| room.members.len()).sum();
        Counts { peers, rooms: self.rooms.len(), ..self.counts.clone() }
    }

    fn check(&self) {
        for (name, room) in &self.rooms {
            for slot in &room.members {
                let membership = &self.clients[*slot].membership;
                assert!(matches!(membership, Membership::Seated(room_name) if room_name == name));
            }
            for slot in &room.waiting {
                let membership = &self.clients[*slot].membership;
                assert!(matches!(membership, Membership::Waiting(room_name) if room_name == name));
            }
            assert!(
                room.members.len() == SEATS || room.waiting.is_empty(),
                "no client waits while a seat is free"
            );
            assert!(room.waiting.len() <= AYAME_WAITING_MAX);
            let is_probed = room.members.iter().any(|slot| self.clients[*slot].is_probed);
            assert!(is_probed || room.waiting.is_empty(), "clients wait only while a probe is running");
        }
        let pinged_count = self.clients.iter().filter(|(_, client)| !client.is_standalone).count();
        assert_eq!(pinged_count, self.ping_queue.len());
    }
}

impl Ayame {
    /// Creates the protocol without rooms. `key` makes the connection ids unguessable.
    pub fn new(config: &Config, key: RandomState) -> Ayame {
        Ayame {
            uuids: UuidCodec::new(key),
            ice: IceServers::new(config),
            token_secrets: config.token_secrets.clone(),
            clients: ConnTable::NEW,
            rooms: HashMap::new(),
            ping_queue: List::default(),
            list_nodes: ListNodes::default(),
            counts: Counts::zero(
                &["register", "relayed"],
                &[FULL, "token_refused", "not_understood", "peer_busy", "rate_limited"],
            ),
        }
    }

    // ---- Connections ----

    fn add_client(&mut self, conn: Conn, context: &mut Context) {
        let client = Client {
            membership: Membership::Unregistered,
            is_standalone: false,
            is_probed: false,
            ping_at: (context.now + AYAME_PING_EVERY).into(),
            token_expires_at: None,
        };
        let slot = self.clients.insert(conn, client);
        self.list_nodes.ensure_slot(slot);
        self.list_nodes.push_back(&mut self.ping_queue, slot);
    }

    fn close(&mut self, slot: Slot, reason: CloseCause, context: &mut Context) {
        let conn = self.clients.conn(slot);
        if let Some(member) = self.member(conn) {
            context.close(conn, reason, &member);
        }
        self.remove_client(slot, context);
    }

    /// Removes a connection, and its room if it has a seat.
    fn remove_client(&mut self, slot: Slot, context: &mut Context) {
        let (_, client) = self.clients.remove(slot);
        if !client.is_standalone {
            self.list_nodes.remove(&mut self.ping_queue, slot);
        }
        match client.membership {
            Membership::Unregistered => {}
            Membership::Waiting(name) => {
                if let Some(room) = self.rooms.get_mut(&name) {
                    room.waiting.retain(|waiting| *waiting != slot);
                }
            }
            Membership::Seated(name) => self.close_room(&name, slot, context),
        }
    }

    /// Removes a room after one of its members has left.
    ///
    /// The other member gets `bye` and is closed. Waiting clients take seats in a new room of the same name.
    /// The room is removed from the table first, because closing the other member calls this function again.
    fn close_room(&mut self, name: &Rc<str>, leaver: Slot, context: &mut Context) {
        let Some(room) = self.rooms.remove(name) else {
            return;
        };
        let other = room.members.into_iter().find(|member| *member != leaver);
        if let Some(other) = other {
            if !self.clients[other].is_standalone {
                context.send(self.clients.conn(other), r#"{"type":"bye"}"#.to_owned());
            }
            self.close(other, CloseCause::Finished, context);
        }
        for slot in room.waiting {
            self.take_seat(slot, name.clone(), context);
        }
    }

    // ---- Messages ----

    fn on_text(&mut self, slot: Slot, text: &str, context: &mut Context) {
        let field_index = |key: &str| FIELDS.iter().position(|field| *field == key);
        let fields = json::parse_fields(text, field_index).unwrap_or_default();
        let message_type = fields[0].and_then(json::parse_string);
        let client = &self.clients[slot];
        let is_unregistered = matches!(client.membership, Membership::Unregistered);
        let is_seated = matches!(client.membership, Membership::Seated(_));
        match message_type.as_deref() {
            Some("pong") => {}
            Some("register") if is_unregistered => self.register(slot, fields, context),
            Some("offer" | "answer" | "candidate") if is_seated => self.relay(slot, text, context),
            Some("connected") if is_seated => {
                if client.is_standalone {
                    self.close(slot, CloseCause::Finished, context);
                }
            }
            _ => self.close_not_understood(slot, context),
        }
    }

    /// Closes a client after a message that is malformed, or well-formed in the wrong state.
    ///
    /// The protocol has no error message.
    fn close_not_understood(&mut self, slot: Slot, context: &mut Context) {
        self.counts.count_error("not_understood");
        self.close(slot, CloseCause::Finished, context);
    }

    /// Forwards a message unchanged to the other member, if there is one.
    fn relay(&mut self, slot: Slot, text: &str, context: &mut Context) {
        self.counts.count_message("relayed");
        let Membership::Seated(name) = &self.clients[slot].membership else {
            return;
        };
        let Some(other) = self.rooms[name].members.iter().find(|member| **member != slot) else {
            return;
        };
        if !context.forward(self.clients.conn(*other), [text.to_owned()]) {
            self.counts.count_error("peer_busy");
        }
    }

    /// Handles `register`: checks the fields and the token, and takes a seat.
    fn register(&mut self, slot: Slot, fields: [Option<&str>; FIELDS.len()], context: &mut Context) {
        self.counts.count_message("register");
        let [_, room, client_id, key, signaling_key, standalone] = fields;
        // A missing field is an empty string.
        let string = |field: Option<_>| json::parse_string(field.unwrap_or(r#""""#));
        let room = string(room).filter(|room| (1..=ROOM_TEXT_BYTES_MAX).contains(&room.len()));
        let client_id = string(client_id);
        let token = string(signaling_key.or(key));
        let is_standalone = match standalone {
            Some(flag) => flag.parse().ok(),
            None => Some(false),
        };
        let (Some(room), Some(client_id), Some(token), Some(is_standalone)) =
            (room, client_id, token, is_standalone)
        else {
            return self.close_not_understood(slot, context);
        };
        if let Some(secrets) = &self.token_secrets {
            match secrets.admit(&token, &room, &client_id, context.wall) {
                Ok(claims) => self.clients[slot].token_expires_at = Some(claims.expires_at),
                Err(error) => {
                    context.record_refused_token(self.clients.conn(slot), error);
                    return self.reject(slot, error.message(), context);
                }
            }
        }
        if is_standalone {
            self.clients[slot].is_standalone = true;
            self.list_nodes.remove(&mut self.ping_queue, slot);
        }
        self.take_seat(slot, room.as_ref().into(), context);
    }

    /// Gives a free seat to a client, or makes the client wait.
    ///
    /// While a client waits, the two members are probed.
    fn take_seat(&mut self, slot: Slot, name: Rc<str>, context: &mut Context) {
        let room = self.rooms.entry(name.clone()).or_default();
        if room.members.len() < SEATS {
            room.members.push(slot);
            let is_second = room.members.len() == SEATS;
            return self.accept(slot, name, is_second, context);
        }
        if room.waiting.len() >= AYAME_WAITING_MAX {
            return self.reject(slot, FULL, context);
        }
        room.waiting.push(slot);
        self.clients[slot].membership = Membership::Waiting(name);
        for &member in &room.members {
            if !self.clients[member].is_probed {
                self.clients[member].is_probed = true;
                context.probe(self.clients.conn(member));
            }
        }
    }

    /// Completes a registration: sends `accept` with the STUN and TURN servers.
    fn accept(&mut self, slot: Slot, name: Rc<str>, is_second: bool, context: &mut Context) {
        let conn = self.clients.conn(slot);
        let id = self.uuids.encode(conn);
        context.registered(conn, &name, &id);
        let client = &mut self.clients[slot];
        client.membership = Membership::Seated(name);
        let text = format!(
            r#"{{"type":"accept","connectionId":"{id}","isExistClient":{is_second},"isExistUser":{is_second}}}"#
        );
        let text = self.ice.append_to(text, &id, context.wall, client.token_expires_at);
        context.send(conn, text);
    }

    /// Sends `reject` and closes the client.
    fn reject(&mut self, slot: Slot, reason: &str, context: &mut Context) {
        let error_name = if reason == FULL { FULL } else { "token_refused" };
        self.counts.count_error(error_name);
        let text = format!(r#"{{"type":"reject","reason":"{reason}"}}"#);
        context.send(self.clients.conn(slot), text);
        self.close(slot, CloseCause::Finished, context);
    }

    // ---- Probes and pings ----

    /// Handles a liveness signal of a probed member. If both members are alive, the room is full.
    fn on_probe_answered(&mut self, slot: Slot, context: &mut Context) {
        self.clients[slot].is_probed = false;
        let Membership::Seated(name) = &self.clients[slot].membership else {
            return;
        };
        let room = self.rooms.get_mut(name).expect("a seated client has a room");
        if room.members.iter().any(|member| self.clients[*member].is_probed) {
            return;
        }
        let waiting = std::mem::take(&mut room.waiting);
        for third in waiting {
            self.reject(third, FULL, context);
        }
    }

    /// Handles a failed probe of a member.
    ///
    /// The member is closed if a client waits for its seat.
    fn on_probe_failed(&mut self, slot: Slot, context: &mut Context) {
        let has_waiting_client = match &self.clients[slot].membership {
            Membership::Seated(name) => self.rooms.get(name).is_some_and(|room| !room.waiting.is_empty()),
            Membership::Unregistered | Membership::Waiting(_) => false,
        };
        if has_waiting_client {
            self.close(slot, CloseCause::Replaced, context);
        } else {
            self.clients[slot].is_probed = false;
        }
    }

    /// Pings the first client of the ping queue if it is due.
    fn ping_first_client(&mut self, context: &mut Context) {
        let Some(first) = self.ping_queue.first() else {
            return;
        };
        if self.clients[first].ping_at.get() > context.now {
            return;
        }
        self.clients[first].ping_at = (context.now + AYAME_PING_EVERY).into();
        context.send(self.clients.conn(first), r#"{"type":"ping"}"#.to_owned());
        self.list_nodes.remove(&mut self.ping_queue, first);
        self.list_nodes.push_back(&mut self.ping_queue, first);
    }
}
