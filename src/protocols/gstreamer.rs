//! GStreamer: the signalling protocol of `webrtcsink` and `webrtcsrc`.
//!
//! A peer is a connection, to which the server gives an id. It sets its own roles: a `producer` offers media, a `consumer` waits
//! until a producer starts a session with it, and a `listener` gets an event for every change. A session is one consumer that plays
//! one producer, and messages are relayed within sessions (`sessions`). Peers see each other only within a room, which the path
//! names.
//!
//! Two properties of native clients determine much here. They end their pipeline when they receive an `error`, or a message that
//! they cannot parse: `error` is sent only where the original does it and for requests beyond the limits, other invalid messages are
//! dropped, and nothing is relayed before it is checked (`message`). And they do not notice a Close frame, see
//! [`Endpoint::ends_without_close_frame`].
//!
//! A native client does not keep the order of its own messages, so that none but `setProtocolVersion` depends on earlier ones of the
//! same peer.
//!
//! The transcripts in `tests/transcripts/gstreamer` show all messages.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::time::Duration;

use hashbrown::HashTable;

use crate::config::Endpoint;
use crate::http::token::Claims;
use crate::limits::{
    GSTREAMER_LIST_BYTES_MAX, GSTREAMER_LISTENERS_MAX, GSTREAMER_META_BYTES_MAX,
    GSTREAMER_ROOM_META_BYTES_MAX, GSTREAMER_SESSIONS_PER_CONSUMER_MAX, GSTREAMER_SESSIONS_PER_PRODUCER_MAX,
    GSTREAMER_WORST_CASE_BYTES,
};
use crate::memory_budget::Reservation;
use crate::message::Message;
use crate::metrics::{Counts, Gauge};
use crate::protocol::{CloseCause, Conn, Context, Descriptor, Member, Protocol, Target, TokenPlace};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::name_table::{NameTable, Named};
use crate::protocols::path_room;
use crate::protocols::uuid;
use crate::rate_limit::{Verdict, credits_for_bytes, credits_for_deliveries};

mod message;
mod sessions;

use message::{ClientMessage, Role, Version};
use sessions::Session;

/// All rooms, peers and sessions.
pub struct GStreamer {
    /// Makes ids unguessable, and the hashes of names and ids unpredictable.
    key: RandomState,
    rooms: NameTable<Room>,
    peers: ConnTable<Peer>,
    /// Peers by room and id. An entry is a slot of four bytes; the id is in the peer.
    peers_by_id: HashTable<Slot>,
    sessions: NameTable<Session>,
    /// The number of ids that were generated for peers.
    generated_ids: u64,
    /// The number of sessions so far.
    session_numbers: u64,
    /// The number of times that a peer became a producer or a consumer.
    listings: u64,
    /// Peers with the role `producer`.
    producer_count: usize,
    counts: Counts,
}

/// A room exists while a peer is in it.
struct Room {
    name: Box<str>,
    peer_count: usize,
    producers: RoleList,
    consumers: RoleList,
    listeners: BTreeSet<Slot>,
    /// The bytes of the `meta` of all its peers.
    meta_bytes: usize,
}

/// The peers of a room that have a role, in the order in which they took it.
#[derive(Default)]
struct RoleList {
    peers: BTreeSet<(u64, Slot)>,
    /// The bytes of their entries in the answer to `list`, with commas.
    bytes: usize,
}

struct Peer {
    /// The index of its room.
    room: u32,
    id: Box<str>,
    /// As it has sent them.
    roles: Box<[Role]>,
    /// JSON text.
    meta: Box<str>,
    /// The memory of `meta`. `None` if that is `null`.
    meta_memory: Option<Reservation>,
    /// Its place in the list of producers or consumers.
    listing: Option<u64>,
    /// Whether it has set its status.
    has_status: bool,
    /// Whether it has sent a well-formed message.
    has_spoken: bool,
    version: Version,
    /// Indices of `sessions` by their numbers.
    sessions_as_producer: BTreeMap<u64, u32>,
    sessions_as_consumer: BTreeMap<u64, u32>,
}

impl Room {
    fn new(name: &str) -> Room {
        Room {
            name: name.into(),
            peer_count: 0,
            producers: RoleList::default(),
            consumers: RoleList::default(),
            listeners: BTreeSet::new(),
            meta_bytes: 0,
        }
    }

    fn list(&self, role: ListedRole) -> &RoleList {
        match role {
            ListedRole::Producer => &self.producers,
            ListedRole::Consumer => &self.consumers,
        }
    }

    fn list_mut(&mut self, role: ListedRole) -> &mut RoleList {
        match role {
            ListedRole::Producer => &mut self.producers,
            ListedRole::Consumer => &mut self.consumers,
        }
    }
}

impl Named for Room {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Peer {
    fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// The roles whose peers can be listed. A peer has at most one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListedRole {
    Producer,
    Consumer,
}

impl ListedRole {
    fn of(roles: &[Role]) -> Option<ListedRole> {
        if roles.contains(&Role::Producer) {
            Some(ListedRole::Producer)
        } else if roles.contains(&Role::Consumer) {
            Some(ListedRole::Consumer)
        } else {
            None
        }
    }
}

/// Reasons for which a message is refused or ignored.
const NOT_UNDERSTOOD: &str = "not_understood";
const UNKNOWN_PEER: &str = "unknown_peer";
const UNKNOWN_SESSION: &str = "unknown_session";
const NOT_IN_SESSION: &str = "not_in_session";
const CONSUMER_OFFER: &str = "consumer_offer";
const BOTH_ROLES: &str = "both_roles";
const LATE_VERSION: &str = "late_version";
const TOO_MANY: &str = "too_many";
const PEER_BUSY: &str = "peer_busy";
const RATE_LIMITED: &str = "rate_limited";

/// Registers the protocol.
pub static DESCRIPTOR: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "gstreamer",
        title: "GStreamer",
        default_path: "/",
        is_always_on: false,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: true,
        has_large_queues: false,
        ends_without_close_frame: true,
        health_path: None,
        stored_bytes_max: GSTREAMER_WORST_CASE_BYTES,
    },
    token_place: TokenPlace::Request,
    route: |below, _| path_room::route(below),
    new: |_, key| Box::new(GStreamer::new(key)),
};

impl Protocol for GStreamer {
    fn on_connect(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>, context: &mut Context) {
        let id = match claims.and_then(|claims| claims.id.clone()) {
            Some(id) => {
                self.end_holder(&target.room, &id, context);
                id
            }
            None => self.generate_id(),
        };
        self.add_peer(conn, &target.room, id, context);
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        let Some(slot) = self.peers.find(conn) else { return };
        match message {
            Message::Text(text) => self.on_text(slot, text, context),
            Message::Binary(_) => self.counts.count_error(NOT_UNDERSTOOD),
        }
    }

    /// An `error` would end the pipeline of a native client.
    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {
        self.counts.count_error(RATE_LIMITED);
    }

    fn on_disconnect(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            self.remove_peer(slot, context);
        }
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.rooms.find(&target.room).is_some()
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let peer = &self.peers[self.peers.find(conn)?];
        let state = match (ListedRole::of(&peer.roles), peer.has_role(Role::Listener)) {
            (Some(ListedRole::Producer), false) => "producer",
            (Some(ListedRole::Producer), true) => "producer+listener",
            (Some(ListedRole::Consumer), false) => "consumer",
            (Some(ListedRole::Consumer), true) => "consumer+listener",
            (None, true) => "listener",
            (None, false) => "peer",
        };
        Some(Member { room: &self.rooms[peer.room].name, id: Some((&*peer.id).into()), state })
    }

    fn counts(&self, _: Duration) -> Counts {
        let gauge = |name, help, value| Gauge { name, help, value };
        Counts {
            peers: self.peers_by_id.len(),
            rooms: self.rooms.len(),
            gauges: vec![
                gauge("producers", "Peers that offer media.", self.producer_count),
                gauge("sessions", "Sessions of two peers.", self.sessions.len()),
            ],
            ..self.counts.clone()
        }
    }

    fn check(&self) {
        self.rooms.check();
        self.sessions.check();
        let mut peer_count = 0;
        let mut session_counts = (0, 0);
        let mut producer_count = 0;
        for (slot, peer) in self.peers.iter() {
            peer_count += 1;
            assert_eq!(self.find_peer(peer.room, &peer.id), Some(slot));
            assert_eq!(peer.meta_memory.is_some(), meta_bytes(&peer.meta) > 0);
            assert_eq!(peer.listing.is_some(), ListedRole::of(&peer.roles).is_some());
            assert!(!(peer.has_role(Role::Producer) && peer.has_role(Role::Consumer)));
            for (number, index) in &peer.sessions_as_producer {
                let session = &self.sessions[*index];
                assert_eq!((session.number, session.producer), (*number, slot));
                assert_eq!(self.peers[session.consumer].room, peer.room, "a session is within a room");
            }
            for (number, index) in &peer.sessions_as_consumer {
                let session = &self.sessions[*index];
                assert_eq!((session.number, session.consumer), (*number, slot));
            }
            assert!(peer.sessions_as_producer.len() <= GSTREAMER_SESSIONS_PER_PRODUCER_MAX);
            assert!(peer.sessions_as_consumer.len() <= GSTREAMER_SESSIONS_PER_CONSUMER_MAX);
            session_counts.0 += peer.sessions_as_producer.len();
            session_counts.1 += peer.sessions_as_consumer.len();
            producer_count += usize::from(peer.has_role(Role::Producer));
        }
        assert_eq!(peer_count, self.peers_by_id.len());
        assert_eq!(producer_count, self.producer_count);
        assert_eq!(session_counts, (self.sessions.len(), self.sessions.len()));
        for (index, room) in self.rooms.iter() {
            assert!(room.peer_count > 0, "a room ends with its last peer");
            let peers = || self.peers.iter().filter(|(_, peer)| peer.room == index);
            assert_eq!(peers().count(), room.peer_count);
            assert_eq!(peers().map(|(_, peer)| meta_bytes(&peer.meta)).sum::<usize>(), room.meta_bytes);
            assert!(room.meta_bytes <= GSTREAMER_ROOM_META_BYTES_MAX);
            let listeners = peers().filter(|(_, peer)| peer.has_role(Role::Listener)).map(|(slot, _)| slot);
            assert!(listeners.eq(room.listeners.iter().copied()));
            assert!(room.listeners.len() <= GSTREAMER_LISTENERS_MAX);
            for role in [ListedRole::Producer, ListedRole::Consumer] {
                let list = room.list(role);
                let listed = || peers().filter(|(_, peer)| ListedRole::of(&peer.roles) == Some(role));
                let entries = listed().filter_map(|(slot, peer)| Some((peer.listing?, slot)));
                assert_eq!(entries.collect::<BTreeSet<_>>(), list.peers);
                let bytes: usize = listed().map(|(_, peer)| entry_bytes(&peer.id, &peer.meta)).sum();
                assert_eq!(bytes, list.bytes);
                assert!(list.bytes <= GSTREAMER_LIST_BYTES_MAX);
            }
        }
    }
}

impl GStreamer {
    /// Creates the protocol without rooms. `key` makes ids unguessable, and hashes unpredictable.
    pub fn new(key: RandomState) -> GStreamer {
        GStreamer {
            rooms: NameTable::new(key.clone()),
            peers: ConnTable::NEW,
            peers_by_id: HashTable::new(),
            sessions: NameTable::new(key.clone()),
            key,
            generated_ids: 0,
            session_numbers: 0,
            listings: 0,
            producer_count: 0,
            counts: Counts::zero(
                &message::NAMES,
                &[
                    NOT_UNDERSTOOD,
                    UNKNOWN_PEER,
                    UNKNOWN_SESSION,
                    NOT_IN_SESSION,
                    CONSUMER_OFFER,
                    BOTH_ROLES,
                    LATE_VERSION,
                    TOO_MANY,
                    PEER_BUSY,
                    RATE_LIMITED,
                ],
            ),
        }
    }

    // ---- Connections ----

    fn generate_id(&mut self) -> Box<str> {
        self.generated_ids += 1;
        uuid::random(&self.key, "GStreamer peer", self.generated_ids).into()
    }

    /// Ends the connection that has an id, because another one has a token for it.
    fn end_holder(&mut self, room: &str, id: &str, context: &mut Context) {
        let room = self.rooms.find(room);
        if let Some(holder) = room.and_then(|room| self.find_peer(room, id)) {
            self.close(holder, CloseCause::Replaced, context);
        }
    }

    fn add_peer(&mut self, conn: Conn, room_name: &str, id: Box<str>, context: &mut Context) {
        let room = match self.rooms.find(room_name) {
            Some(room) => room,
            None => self.rooms.insert(Room::new(room_name)),
        };
        self.rooms[room].peer_count += 1;
        context.registered(conn, room_name, &id);
        context.send(conn, message::welcome(&id));
        let peer = Peer {
            room,
            id,
            roles: Box::default(),
            meta: "null".into(),
            meta_memory: None,
            listing: None,
            has_status: false,
            has_spoken: false,
            version: Version::V1_0,
            sessions_as_producer: BTreeMap::new(),
            sessions_as_consumer: BTreeMap::new(),
        };
        let slot = self.peers.insert(conn, peer);
        let GStreamer { peers_by_id, peers, key, .. } = self;
        let hash = |slot: &Slot| key.hash_one((peers[*slot].room, &*peers[*slot].id));
        peers_by_id.insert_unique(hash(&slot), slot, hash);
    }

    fn close(&mut self, slot: Slot, cause: CloseCause, context: &mut Context) {
        let conn = self.peers.conn(slot);
        if let Some(member) = self.member(conn) {
            context.close(conn, cause, &member);
        }
        self.remove_peer(slot, context);
    }

    /// Removes a peer: ends its sessions, and then tells listeners that it has no roles any more.
    fn remove_peer(&mut self, slot: Slot, context: &mut Context) {
        self.end_sessions_as_consumer(slot, context);
        self.end_sessions_as_producer(slot, context);
        self.remove_from_room(slot);
        let hash = self.key.hash_one((self.peers[slot].room, &*self.peers[slot].id));
        let entry = self.peers_by_id.find_entry(hash, |entry| *entry == slot);
        entry.expect("every peer is in the table of ids").remove();
        let (_, peer) = self.peers.remove(slot);
        let room = &mut self.rooms[peer.room];
        room.peer_count -= 1;
        if room.peer_count == 0 {
            self.rooms.remove(peer.room);
        } else {
            let notice = message::peer_status_changed(&peer.id, &[], &peer.meta);
            self.notify_listeners(peer.room, &notice, context);
        }
    }

    /// Finds the peer of a room with this id.
    fn find_peer(&self, room: u32, id: &str) -> Option<Slot> {
        let is_it = |slot: &Slot| {
            let peer = &self.peers[*slot];
            peer.room == room && *peer.id == *id
        };
        self.peers_by_id.find(self.key.hash_one((room, id)), is_it).copied()
    }

    // ---- Messages ----

    /// Handles a message. One that is not understood is counted and ignored.
    fn on_text(&mut self, slot: Slot, text: &str, context: &mut Context) {
        let Some(message) = message::parse(text) else {
            return self.counts.count_error(NOT_UNDERSTOOD);
        };
        self.counts.count_message(message.name());
        let is_first = !mem::replace(&mut self.peers[slot].has_spoken, true);
        match message {
            ClientMessage::SetProtocolVersion(version) if is_first => self.peers[slot].version = version,
            ClientMessage::SetProtocolVersion(_) => {
                let details = "setProtocolVersion must be the first message";
                self.refuse(slot, LATE_VERSION, details, context);
            }
            ClientMessage::SetPeerStatus { roles, meta, peer_id } => {
                let status = Status { roles, meta, peer_id: peer_id.as_deref() };
                self.set_peer_status(slot, status, text.len(), context);
            }
            ClientMessage::List => self.send_list(slot, ListedRole::Producer, text.len(), context),
            ClientMessage::ListConsumers => self.send_list(slot, ListedRole::Consumer, text.len(), context),
            ClientMessage::StartSession { peer_id, offer } => {
                self.start_session(slot, &peer_id, offer, text.len(), context);
            }
            ClientMessage::EndSession { session_id, error, .. } => {
                self.end_session(slot, &session_id, error, context);
            }
            ClientMessage::Peer { session_id, content } => self.relay(slot, &session_id, &content, context),
        }
    }

    /// Answers a request with `error`, which ends the pipeline of a native client.
    fn refuse(&mut self, slot: Slot, reason: &'static str, details: &str, context: &mut Context) {
        self.counts.count_error(reason);
        context.send(self.peers.conn(slot), message::error(details));
    }

    /// Sends the peers of the room that have a role. The sender pays for the size of the answer.
    fn send_list(&mut self, slot: Slot, role: ListedRole, message_bytes: usize, context: &mut Context) {
        let conn = self.peers.conn(slot);
        let list = self.rooms[self.peers[slot].room].list(role);
        let begin = match role {
            ListedRole::Producer => message::LIST_BEGIN,
            ListedRole::Consumer => message::LIST_CONSUMERS_BEGIN,
        };
        let bytes = begin.len() + list.bytes + message::LIST_END.len();
        match context.charge(conn, credits_for_bytes(bytes), message_bytes) {
            Verdict::Pass => {}
            Verdict::Drop { .. } => return self.counts.count_error(RATE_LIMITED),
            Verdict::Close => return self.close(slot, CloseCause::RateLimited, context),
        }
        let mut text = String::with_capacity(bytes);
        text.push_str(begin);
        for (index, (_, peer)) in list.peers.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            let Peer { id, meta, .. } = &self.peers[*peer];
            text.push_str(&message::list_entry(id, meta));
        }
        text.push_str(message::LIST_END);
        context.send(conn, text);
    }

    // ---- Status ----

    /// Sets the roles and the description of a peer, ends its sessions in roles that it gives up, and tells the listeners.
    fn set_peer_status(
        &mut self,
        slot: Slot,
        status: Status<'_>,
        message_bytes: usize,
        context: &mut Context,
    ) {
        let Status { roles, meta, .. } = &status;
        if roles.contains(&Role::Producer) && roles.contains(&Role::Consumer) {
            let details = "a peer cannot be producer and consumer";
            return self.refuse(slot, BOTH_ROLES, details, context);
        }
        if self.is_unchanged(slot, &status) {
            return;
        }
        if let Err(details) = self.check_status_limits(slot, roles, meta) {
            return self.refuse(slot, TOO_MANY, details, context);
        }
        let memory = match meta_bytes(meta) {
            0 => None,
            bytes => match context.reserve(bytes) {
                Some(memory) => Some(memory),
                None => return self.refuse(slot, TOO_MANY, "the server has no memory for meta", context),
            },
        };
        let peer = &self.peers[slot];
        let room_index = peer.room;
        let notice = message::peer_status_changed(&peer.id, roles, meta);
        let listeners = &self.rooms[room_index].listeners;
        let other_listeners = listeners.len() - usize::from(peer.has_role(Role::Listener));
        let receivers = other_listeners + usize::from(roles.contains(&Role::Listener));
        let credits = credits_for_bytes(message_bytes) + credits_for_deliveries(receivers, notice.len());
        match context.charge(self.peers.conn(slot), credits, message_bytes) {
            Verdict::Pass => {}
            Verdict::Drop { .. } => return self.counts.count_error(RATE_LIMITED),
            Verdict::Close => return self.close(slot, CloseCause::RateLimited, context),
        }
        if peer.has_role(Role::Producer) && !roles.contains(&Role::Producer) {
            self.end_sessions_as_producer(slot, context);
        }
        if self.peers[slot].has_role(Role::Consumer) && !roles.contains(&Role::Consumer) {
            self.end_sessions_as_consumer(slot, context);
        }
        let previous = self.remove_from_room(slot);
        let peer = &mut self.peers[slot];
        peer.roles = status.roles;
        peer.meta = status.meta.into();
        peer.meta_memory = memory;
        peer.has_status = true;
        // A peer that keeps its role keeps its place in the list.
        let role = ListedRole::of(&peer.roles);
        peer.listing = previous.filter(|(before, _)| role == Some(*before)).map(|(_, listing)| listing);
        self.insert_into_room(slot);
        self.notify_listeners(room_index, &notice, context);
    }

    /// Returns whether a status is what the peer has, so that nobody hears of it. The peer has to repeat its id, too.
    fn is_unchanged(&self, slot: Slot, status: &Status<'_>) -> bool {
        let peer = &self.peers[slot];
        let is_id_unchanged = match status.peer_id {
            Some(id) => peer.has_status && *id == *peer.id,
            None => !peer.has_status,
        };
        is_id_unchanged && status.roles == peer.roles && *status.meta == *peer.meta
    }

    /// Checks whether the limits allow a status.
    ///
    /// # Errors
    /// What there is too much of.
    fn check_status_limits(&self, slot: Slot, roles: &[Role], meta: &str) -> Result<(), &'static str> {
        let peer = &self.peers[slot];
        let room = &self.rooms[peer.room];
        if meta.len() > GSTREAMER_META_BYTES_MAX {
            return Err("meta is too large");
        }
        if room.meta_bytes - meta_bytes(&peer.meta) + meta_bytes(meta) > GSTREAMER_ROOM_META_BYTES_MAX {
            return Err("the meta of all peers is too large");
        }
        let is_new_listener = roles.contains(&Role::Listener) && !peer.has_role(Role::Listener);
        if is_new_listener && room.listeners.len() >= GSTREAMER_LISTENERS_MAX {
            return Err("there are too many listeners");
        }
        if let Some(role) = ListedRole::of(roles) {
            let is_listed = self.listed_role(slot) == Some(role);
            let own_bytes = if is_listed { entry_bytes(&peer.id, &peer.meta) } else { 0 };
            let bytes = room.list(role).bytes - own_bytes + entry_bytes(&peer.id, meta);
            if bytes > GSTREAMER_LIST_BYTES_MAX {
                return Err("there are too many peers with this role");
            }
        }
        Ok(())
    }

    fn listed_role(&self, slot: Slot) -> Option<ListedRole> {
        ListedRole::of(&self.peers[slot].roles)
    }

    /// Adds the roles and the description of a peer to its room. A peer without a place in a list gets the last one.
    fn insert_into_room(&mut self, slot: Slot) {
        let peer = &mut self.peers[slot];
        let room = &mut self.rooms[peer.room];
        room.meta_bytes += meta_bytes(&peer.meta);
        if peer.has_role(Role::Listener) {
            room.listeners.insert(slot);
        }
        if let Some(role) = ListedRole::of(&peer.roles) {
            self.producer_count += usize::from(role == ListedRole::Producer);
            self.listings += 1;
            let listing = *peer.listing.get_or_insert(self.listings);
            let list = room.list_mut(role);
            list.peers.insert((listing, slot));
            list.bytes += entry_bytes(&peer.id, &peer.meta);
        }
    }

    /// Removes the roles and the description of a peer from its room. Returns its place in a list.
    fn remove_from_room(&mut self, slot: Slot) -> Option<(ListedRole, u64)> {
        let peer = &mut self.peers[slot];
        let room = &mut self.rooms[peer.room];
        room.meta_bytes -= meta_bytes(&peer.meta);
        room.listeners.remove(&slot);
        let (role, listing) = ListedRole::of(&peer.roles).zip(peer.listing.take())?;
        self.producer_count -= usize::from(role == ListedRole::Producer);
        let list = room.list_mut(role);
        list.peers.remove(&(listing, slot));
        list.bytes -= entry_bytes(&peer.id, &peer.meta);
        Some((role, listing))
    }

    /// Sends a text to all listeners of a room. One whose queue has no room for it misses it.
    fn notify_listeners(&mut self, room: u32, text: &str, context: &mut Context) {
        let listeners = &self.rooms[room].listeners;
        if listeners.is_empty() {
            return;
        }
        let mut receivers = listeners.iter().map(|slot| self.peers.conn(*slot));
        let rejected = context.broadcast(&mut receivers, text);
        self.counts.count_errors(PEER_BUSY, rejected);
    }
}

/// A status that a peer asks for.
struct Status<'a> {
    roles: Box<[Role]>,
    /// JSON text.
    meta: &'a str,
    peer_id: Option<&'a str>,
}

/// Returns the bytes that are stored for a description. A missing one takes none.
fn meta_bytes(meta: &str) -> usize {
    if meta == "null" { 0 } else { meta.len() }
}

/// Returns the bytes of the entry of a peer in a list, with a comma.
fn entry_bytes(id: &str, meta: &str) -> usize {
    message::list_entry(id, "").len() + meta.len() + 1
}
