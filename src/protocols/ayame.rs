//! Ayame, the protocol of OpenAyame's web SDK, of momo on boards with a camera, and of others in Japan: rooms with two
//! seats, in which all that one says goes to the other. What is said is in `tests/transcripts/ayame`.
//!
//! A [`Protocol`], and as pure as all of them. When one of the two goes, the room is gone, and the other with it. A third
//! has the two probed, and is told that the room is full only if both show life.

use std::collections::HashMap;
use std::hash::RandomState;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use crate::config::{AYAME_PING_EVERY, AYAME_WAITING_MAX, Config, ROOM_TEXT_BYTES_MAX};
use crate::json;
use crate::metrics::Counts;
use crate::protocol::{Close, Conn, Input, Member};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::ice::IceServers;
use crate::protocols::list::{List, ListNodes};
use crate::protocols::uuid::UuidCodec;
use crate::protocols::{Protocol, Turn};
use crate::timestamp::Timestamp;
use crate::token::Secrets;

/// All rooms, and who is in them or before them.
pub struct Ayame {
    uuids: UuidCodec,
    ice: IceServers,
    /// If nobody comes in without a token.
    secrets: Option<Secrets>,
    /// By slot.
    clients: ConnTable<Client>,
    rooms: HashMap<Rc<str>, Room>,
    /// Those who are pinged, who is next first.
    pings: List,
    links: ListNodes,
    counts: Counts,
}

struct Client {
    place: Place,
    /// Signaling is only until the two have met: no pings, no `bye`.
    standalone: bool,
    /// Whether it has not yet shown life since a third came.
    probed: bool,
    ping_at: Timestamp,
    /// When its token ends, if it needs one.
    until: Option<Duration>,
}

enum Place {
    /// It has not registered.
    Nowhere,
    /// It waits for the probe of those who have the seats.
    Before(Rc<str>),
    /// It has a seat.
    In(Rc<str>),
}

#[derive(Default)]
struct Room {
    /// One or two.
    seats: Vec<Slot>,
    /// Those who wait for the probe, first come first.
    before: Vec<Slot>,
}

/// What a message may say beside what is only passed on.
const FIELDS: [&str; 6] = ["type", "roomId", "clientId", "key", "signalingKey", "standalone"];

impl Ayame {
    /// Without anybody. Ids of connections are made with this key.
    pub fn new(config: &Config, key: RandomState) -> Ayame {
        Ayame {
            uuids: UuidCodec::new(key),
            ice: IceServers::new(config),
            secrets: config.token_secrets.clone(),
            clients: ConnTable::NEW,
            rooms: HashMap::new(),
            pings: List::default(),
            links: ListNodes::default(),
            counts: Counts::zero(
                &["register", "relayed"],
                &[FULL, "token_refused", "not_understood", "peer_busy", "rate_limited"],
            ),
        }
    }

    // ---- Coming and going ----

    fn enter(&mut self, conn: Conn, turn: &mut Turn) {
        let (place, ping_at) = (Place::Nowhere, (turn.now + AYAME_PING_EVERY).into());
        let client = Client { place, standalone: false, probed: false, ping_at, until: None };
        let slot = self.clients.insert(conn, client);
        self.links.ensure_slot(slot);
        self.links.push_back(&mut self.pings, slot);
    }

    /// Ends a connection: it is closed, and forgotten.
    fn end(&mut self, slot: Slot, why: Close, turn: &mut Turn) {
        turn.close(self.clients.conn(slot), why);
        self.exit(slot, turn);
    }

    /// A connection is gone, and with it the room in which it has a seat.
    fn exit(&mut self, slot: Slot, turn: &mut Turn) {
        let conn = self.clients.conn(slot);
        turn.left(conn, self.member(conn));
        let (_, client) = self.clients.remove(slot);
        if !client.standalone {
            self.links.remove(&mut self.pings, slot);
        }
        match client.place {
            Place::Nowhere => {}
            Place::Before(name) => {
                if let Some(room) = self.rooms.get_mut(&name) {
                    room.before.retain(|it| *it != slot);
                }
            }
            Place::In(name) => self.end_room(&name, slot, turn),
        }
    }

    /// One of the two has left: the other is told, and closed. Who waited for a seat has the next room of this name. A room
    /// is out of the table before anybody is ended because of it.
    fn end_room(&mut self, name: &Rc<str>, leaver: Slot, turn: &mut Turn) {
        let Some(room) = self.rooms.remove(name) else { return };
        if let Some(other) = room.seats.into_iter().find(|seat| *seat != leaver) {
            if !self.clients[other].standalone {
                turn.send(self.clients.conn(other), r#"{"type":"bye"}"#.to_owned());
            }
            self.end(other, Close::Finished, turn);
        }
        for slot in room.before {
            self.sit(slot, name.clone(), turn);
        }
    }

    // ---- Messages ----

    fn hear(&mut self, slot: Slot, text: &str, turn: &mut Turn) {
        let place = |key: &str| FIELDS.iter().position(|name| *name == key);
        let fields = json::parse_fields(text, place).unwrap_or_default();
        let kind = fields[0].and_then(json::parse_string);
        let is_seated = matches!(self.clients[slot].place, Place::In(_));
        match kind.as_deref() {
            Some("pong") => {}
            Some("register") if matches!(self.clients[slot].place, Place::Nowhere) => {
                self.register(slot, fields, turn);
            }
            Some("offer" | "answer" | "candidate") if is_seated => self.relay(slot, text, turn),
            Some("connected") if is_seated && !self.clients[slot].standalone => {}
            Some("connected") if is_seated => self.end(slot, Close::Finished, turn),
            _ => self.refuse(slot, turn),
        }
    }

    /// Whatever cannot be understood ends the connection: there is no word for it.
    fn refuse(&mut self, slot: Slot, turn: &mut Turn) {
        self.counts.count_error("not_understood");
        self.end(slot, Close::Finished, turn);
    }

    /// To the other seat, as it is. Who is alone speaks to nobody.
    fn relay(&mut self, slot: Slot, text: &str, turn: &mut Turn) {
        self.counts.count_message("relayed");
        let Place::In(name) = &self.clients[slot].place else { return };
        let Some(other) = self.rooms[name].seats.iter().find(|seat| **seat != slot) else { return };
        if !turn.forward(self.clients.conn(*other), [text.to_owned()]) {
            self.counts.count_error("peer_busy");
        }
    }

    fn register(&mut self, slot: Slot, fields: [Option<&str>; FIELDS.len()], turn: &mut Turn) {
        self.counts.count_message("register");
        let [_, room, client, key, signaling_key, standalone] = fields;
        // What is missing is empty.
        let text = |field: Option<_>| json::parse_string(field.unwrap_or(r#""""#));
        let (room, client, key) = (text(room), text(client), text(signaling_key.or(key)));
        let room = room.filter(|room| (1..=ROOM_TEXT_BYTES_MAX).contains(&room.len()));
        let is_standalone = standalone.map_or(Some(false), |flag| flag.parse().ok());
        let (Some(room), Some(client), Some(key), Some(is_standalone)) = (room, client, key, is_standalone)
        else {
            return self.refuse(slot, turn);
        };
        let admit = |secrets: &Secrets| secrets.admit(&key, &room, Some(&client), turn.wall);
        match self.secrets.as_ref().map(admit).transpose() {
            Ok(claims) => self.clients[slot].until = claims.map(|claims| claims.expires_at),
            Err(fault) => return self.reject(slot, fault.message(), turn),
        }
        if is_standalone {
            self.clients[slot].standalone = true;
            self.links.remove(&mut self.pings, slot);
        }
        self.sit(slot, room.as_ref().into(), turn);
    }

    /// Somebody has the next free seat, or waits until it is known whether one is free.
    fn sit(&mut self, slot: Slot, name: Rc<str>, turn: &mut Turn) {
        let room = self.rooms.entry(name.clone()).or_default();
        if room.seats.len() < 2 {
            room.seats.push(slot);
            let is_second = room.seats.len() == 2;
            return self.accept(slot, name, is_second, turn);
        }
        if room.before.len() >= AYAME_WAITING_MAX {
            return self.reject(slot, FULL, turn);
        }
        room.before.push(slot);
        self.clients[slot].place = Place::Before(name);
        for &seat in &room.seats {
            if !mem::replace(&mut self.clients[seat].probed, true) {
                turn.probe(self.clients.conn(seat));
            }
        }
    }

    fn accept(&mut self, slot: Slot, name: Rc<str>, is_second: bool, turn: &mut Turn) {
        let (conn, until) = (self.clients.conn(slot), self.clients[slot].until);
        let id = self.uuids.encode(conn);
        turn.registered(conn, &name, &id);
        self.clients[slot].place = Place::In(name);
        let text = format!(
            r#"{{"type":"accept","connectionId":"{id}","isExistClient":{is_second},"isExistUser":{is_second}}}"#
        );
        turn.send(conn, self.ice.append_to(text, &id, turn.wall, until));
    }

    fn reject(&mut self, slot: Slot, reason: &str, turn: &mut Turn) {
        self.counts.count_error(if reason == FULL { FULL } else { "token_refused" });
        turn.send(self.clients.conn(slot), format!(r#"{{"type":"reject","reason":"{reason}"}}"#));
        self.end(slot, Close::Finished, turn);
    }

    // ---- Life ----

    /// If both of a room live, it is full.
    fn alive(&mut self, slot: Slot, turn: &mut Turn) {
        self.clients[slot].probed = false;
        let Place::In(name) = &self.clients[slot].place else { return };
        let room = self.rooms.get_mut(name).expect("who has a seat has it in a room");
        if room.seats.iter().all(|seat| !self.clients[*seat].probed) {
            for third in mem::take(&mut room.before) {
                self.reject(third, FULL, turn);
            }
        }
    }

    /// Ends the probe of a seat that has shown no life. Without a third that still waits, nothing changes.
    fn silent(&mut self, slot: Slot, turn: &mut Turn) {
        let is_awaited = match &self.clients[slot].place {
            Place::In(name) => self.rooms.get(name).is_some_and(|room| !room.before.is_empty()),
            Place::Nowhere | Place::Before(_) => false,
        };
        if is_awaited {
            self.end(slot, Close::Replaced, turn);
        } else {
            self.clients[slot].probed = false;
        }
    }

    /// Pings whoever is next, if its time has come.
    fn ping(&mut self, turn: &mut Turn) {
        let Some(first) = self.pings.first() else { return };
        if self.clients[first].ping_at.get() <= turn.now {
            self.clients[first].ping_at = (turn.now + AYAME_PING_EVERY).into();
            turn.send(self.clients.conn(first), r#"{"type":"ping"}"#.to_owned());
            self.links.remove(&mut self.pings, first);
            self.links.push_back(&mut self.pings, first);
        }
    }
}

const FULL: &str = "full";

impl Protocol for Ayame {
    fn handle(&mut self, input: Input<'_>, turn: &mut Turn) {
        match input {
            Input::Connected(conn, ..) => return self.enter(conn, turn),
            Input::Time => return self.ping(turn),
            _ => {}
        }
        let Some(slot) = input.conn().and_then(|conn| self.clients.find(conn)) else { return };
        match input {
            Input::Text(_, text) => self.hear(slot, text, turn),
            // What is not UTF-8 is no JSON, and neither is nothing.
            Input::Binary(_, bytes) => self.hear(slot, str::from_utf8(bytes).unwrap_or_default(), turn),
            Input::Dropped { .. } => self.counts.count_error("rate_limited"),
            Input::Alive(_) => self.alive(slot, turn),
            Input::Silent(_) => self.silent(slot, turn),
            Input::Disconnected(_) => self.exit(slot, turn),
            Input::Connected(..) | Input::Time => {}
        }
    }

    fn wake_at(&self) -> Option<Duration> {
        Some(self.clients[self.pings.first()?].ping_at.get())
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let (room, id, state) = match &self.clients[self.clients.find(conn)?].place {
            Place::Nowhere => ("", None, "nameless"),
            Place::Before(room) => (&**room, None, "waiting"),
            Place::In(room) => (&**room, Some(self.uuids.encode(conn).into()), "seated"),
        };
        Some(Member { room, id, state })
    }

    fn renew(&mut self, config: &Config) {
        self.ice = IceServers::new(config);
        self.secrets = config.token_secrets.clone();
    }

    fn counts(&self, _: Duration) -> Counts {
        let peers = self.rooms.values().map(|room| room.seats.len()).sum();
        Counts { peers, rooms: self.rooms.len(), ..self.counts.clone() }
    }

    fn check(&self) {
        let place = |slot: Slot| &self.clients[slot].place;
        for (name, room) in &self.rooms {
            assert!(room.seats.iter().all(|slot| matches!(place(*slot), Place::In(it) if it == name)));
            assert!(room.before.iter().all(|slot| matches!(place(*slot), Place::Before(it) if it == name)));
            assert!(room.seats.len() == 2 || room.before.is_empty(), "nobody waits before a free seat");
            assert!(room.before.len() <= AYAME_WAITING_MAX);
            let is_probed = room.seats.iter().any(|slot| self.clients[*slot].probed);
            assert!(is_probed || room.before.is_empty(), "a third waits for a probe");
        }
        let pinged = self.clients.iter().filter(|(_, client)| !client.standalone).count();
        assert_eq!(pinged, self.pings.len());
    }
}
