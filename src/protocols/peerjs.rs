//! PeerJS: the signaling protocol of the `peerjs` client.
//!
//! A peer has an id and addresses other peers by theirs. The server relays messages between them. It holds messages for five
//! seconds if the receiver is not connected (`holds`), because two pages that open at the same moment must find each other.
//!
//! The protocol has no rooms. The API key of the client serves as one: the same id can exist under two keys, and nothing
//! crosses from one key to another.
//!
//! The upgrade registers the peer, by the query (`ids`). Every refusal that a developer must be able to understand is a message
//! after a successful upgrade, because the client hides the response to a rejected one.
//!
//! Invariants, see `check`:
//! - A room is stored while it has peers or held messages.
//! - A claimant has a holder that is being probed.
//! - Hash tables are never iterated, so that equal inputs have equal effects.
//!
//! The transcripts in `tests/transcripts/peerjs` show all messages.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::time::Duration;

use hashbrown::HashTable;

use crate::config::{Config, Endpoint};
use crate::http::query::Query;
use crate::http::token::{Claims, Secrets};
use crate::limits::{CLAIMANTS_MAX, HELD_BYTES_MAX_FLOOR, HELD_WORST_CASE_BYTES, ID_BYTES_MAX};
use crate::message::Message;
use crate::metrics::Counts;
use crate::protocol::{
    CloseCause, Conn, Context, Descriptor, Member, Protocol, Resource, ResourceRequest, Route, Target,
    TokenPlace,
};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::name_table::{NameTable, Named};
use crate::protocols::uuid;

mod holds;
mod ids;
mod message;

use holds::{Delivery, Holds, NewMessage, Outcome};
use ids::{Identity, Proof, Refusal};
use message::{ClientMessage, Kind};

/// All peers, and what is held for absent ones.
pub struct PeerJs {
    /// `None`: no tokens are required.
    token_secrets: Option<Secrets>,
    peers: ConnTable<Peer>,
    /// Rooms by key.
    rooms: NameTable<Room>,
    /// Registered peers by room and id. An entry is a slot of four bytes; the key is in the peer. The hashes are keyed at
    /// random, because clients choose ids and keys.
    peers_by_id: HashTable<Slot>,
    hasher: RandomState,
    /// The connections that wait for the probe of this holder of an id, first come first. An entry exists while the probe is
    /// running; all claimants may have left since it began.
    claimants: BTreeMap<Slot, Vec<Slot>>,
    holds: Holds,
    /// The number of ids that were generated for clients.
    generated_ids: u64,
    counts: Counts,
}

struct Peer {
    /// The index of its room.
    room: u32,
    id: Box<str>,
    proof: Proof,
    /// The holder of the id, if this connection claims it.
    holder: Option<Slot>,
}

/// The peers that use an API key.
struct Room {
    key: Box<str>,
    peer_count: usize,
}

impl Named for Room {
    fn name(&self) -> &str {
        &self.key
    }
}

/// Registers the protocol.
pub static DESCRIPTOR: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "peerjs",
        title: "PeerJS",
        default_path: "/peerjs",
        is_always_on: false,
        has_rooms_below: false,
        ignores_path_below: false,
        may_be_root: true,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: None,
        stored_bytes_max: HELD_WORST_CASE_BYTES,
    },
    // In the query. But the protocol verifies it, because clients see the reason only in a message.
    token_place: TokenPlace::Message,
    route,
    new: |config, key| Box::new(PeerJs::new(config, key)),
};

/// Returns what a path is. Clients append `peerjs`, `KEY/id` and `KEY/peers` to the path that they are configured with.
///
/// The room is the API key in the query; one that is not valid is refused when the connection is open.
fn route(below: Option<&str>, query: &Query) -> Route {
    let Some(below) = below.filter(|below| *below != "peerjs") else {
        let key = query.values("key").last();
        return Route::Room(key.and_then(Result::ok).unwrap_or_default());
    };
    match resource(below) {
        Some(_) => Route::Resource,
        None => Route::Unknown,
    }
}

/// What clients request by HTTP.
enum RequestedResource {
    ServerInformation,
    NewId,
    ListOfIds,
}

/// Returns the resource at a path below that of the endpoint. The key in it is of no importance.
fn resource(below: &str) -> Option<RequestedResource> {
    let (key, name) = below.split_once('/').unwrap_or(("peerjs", below));
    match name {
        _ if below.is_empty() => Some(RequestedResource::ServerInformation),
        "id" if !key.is_empty() => Some(RequestedResource::NewId),
        "peers" if !key.is_empty() => Some(RequestedResource::ListOfIds),
        _ => None,
    }
}

const INFORMATION: &str = r#"{"name":"PeerJS Server","description":"noroshi, a signaling server that speaks the protocol of PeerJS","website":"https://peerjs.com/"}"#;

impl Protocol for PeerJs {
    fn on_connect(&mut self, conn: Conn, target: &Target, _: Option<&Claims>, context: &mut Context) {
        match self.identify(&target.query, context.wall) {
            Ok(identity) => self.add_peer(conn, identity, context),
            Err(refusal) => self.refuse(conn, &target.room, refusal, context),
        }
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            // An empty text is not understood.
            self.on_text(slot, message.text().unwrap_or_default(), context);
        }
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {
        self.counts.count_error("rate_limited");
    }

    fn on_alive(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            let claimants = self.take_claimants(slot, context);
            self.reject_claimants(claimants, context);
        }
    }

    fn on_silent(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            self.on_probe_failed(slot, context);
        }
    }

    fn on_disconnect(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            self.remove_peer(slot, context);
        }
    }

    fn on_timer(&mut self, context: &mut Context) {
        self.on_hold_expired(context);
    }

    fn next_timer(&self) -> Option<Duration> {
        self.holds.next_deadline()
    }

    fn respond(&mut self, request: ResourceRequest<'_>) -> Option<Resource> {
        const TEXT: &str = "text/plain; charset=utf-8";
        let resource = match resource(request.below?)? {
            RequestedResource::ServerInformation => {
                Resource { status: 200, content_type: "application/json", body: INFORMATION.to_owned() }
            }
            RequestedResource::NewId => {
                Resource { status: 200, content_type: TEXT, body: self.generate_id() }
            }
            RequestedResource::ListOfIds => {
                let body = "the list of ids is disabled\n".to_owned();
                Resource { status: 401, content_type: TEXT, body }
            }
        };
        Some(resource)
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.rooms.find(&target.room).is_some_and(|room| self.rooms[room].peer_count > 0)
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let peer = &self.peers[self.peers.find(conn)?];
        let room = &self.rooms[peer.room].key;
        let member = match peer.holder {
            None => Member { room, id: Some((&*peer.id).into()), state: "open" },
            Some(_) => Member { room, id: None, state: "claimant" },
        };
        Some(member)
    }

    fn renew(&mut self, config: &Config) {
        self.token_secrets = config.token_secrets.clone();
    }

    fn counts(&self, _: Duration) -> Counts {
        let rooms = self.rooms.iter().filter(|(_, room)| room.peer_count > 0).count();
        Counts { peers: self.peers_by_id.len(), rooms, ..self.counts.clone() }
    }

    fn check(&self) {
        self.holds.check();
        let mut peer_counts = BTreeMap::new();
        for (slot, peer) in self.peers.iter() {
            match peer.holder {
                None => {
                    assert_eq!(self.find_peer(peer.room, &peer.id), Some(slot));
                    *peer_counts.entry(peer.room).or_default() += 1;
                }
                Some(holder) => {
                    let holder_peer = &self.peers[holder];
                    assert_eq!((holder_peer.room, &holder_peer.id), (peer.room, &peer.id));
                    assert!(self.claimants[&holder].contains(&slot));
                }
            }
        }
        assert_eq!(self.peers_by_id.len(), peer_counts.values().sum::<usize>());
        for (holder, claimants) in &self.claimants {
            assert!(self.peers[*holder].holder.is_none(), "only a holder is probed");
            assert!(claimants.len() <= CLAIMANTS_MAX);
            assert!(claimants.iter().all(|claimant| self.peers[*claimant].holder == Some(*holder)));
        }
        for (room, destination) in self.holds.receivers() {
            assert!(self.rooms.contains(room));
            assert_eq!(self.find_peer(room, destination), None, "messages are held only for absent peers");
        }
        self.rooms.check();
        for (index, room) in self.rooms.iter() {
            assert_eq!(room.peer_count, peer_counts.get(&index).copied().unwrap_or(0));
            assert!(
                room.peer_count > 0 || self.holds.has_room(index),
                "a room is stored only while it is used"
            );
        }
    }
}

impl PeerJs {
    /// Creates the protocol without peers. `key` makes hashes and generated ids unpredictable.
    pub fn new(config: &Config, key: RandomState) -> PeerJs {
        let held_bytes_max = HELD_BYTES_MAX_FLOOR.max(config.message_bytes_max);
        PeerJs {
            token_secrets: config.token_secrets.clone(),
            peers: ConnTable::NEW,
            rooms: NameTable::new(key.clone()),
            peers_by_id: HashTable::new(),
            hasher: key.clone(),
            claimants: BTreeMap::new(),
            holds: Holds::new(held_bytes_max, key),
            generated_ids: 0,
            counts: Counts::zero(
                &["OFFER", "ANSWER", "CANDIDATE", "LEAVE", "HEARTBEAT"],
                &[
                    "bad_parameters",
                    "id_taken",
                    "not_understood",
                    "expired",
                    "hold_full",
                    "peer_busy",
                    "rate_limited",
                ],
            ),
        }
    }

    /// Returns an id for a client that does not choose one. It is not reserved.
    fn generate_id(&mut self) -> String {
        self.generated_ids += 1;
        uuid::random(&self.hasher, "PeerJS id", self.generated_ids)
    }

    // ---- Connections ----

    /// Adds a connection. It gets its id at once, waits for a probe of the holder, or is refused.
    fn add_peer(&mut self, conn: Conn, identity: Identity, context: &mut Context) {
        let Identity { key, id, proof } = identity;
        let room = match self.rooms.find(&key) {
            Some(room) => room,
            None => self.rooms.insert(Room { key: key.into(), peer_count: 0 }),
        };
        let holder = self.find_peer(room, &id);
        let slot = self.peers.insert(conn, Peer { room, id: id.into(), proof, holder });
        let Some(holder) = holder else {
            return self.open(slot, context);
        };
        let holder_proof = self.peers[holder].proof;
        if proof.takes_over(holder_proof) {
            return self.take_over(slot, holder, context);
        }
        let claimants = self.claimants.get(&holder);
        let is_full = claimants.is_some_and(|claimants| claimants.len() >= CLAIMANTS_MAX);
        if holder_proof == Proof::TokenForId || is_full {
            return self.reject(slot, context);
        }
        if claimants.is_none() {
            context.probe(self.peers.conn(holder));
        }
        self.claimants.entry(holder).or_default().push(slot);
        context.pause_reading(conn);
    }

    /// Sends `ERROR` and closes a connection that has not become a peer.
    fn refuse(&mut self, conn: Conn, room: &str, refusal: Refusal, context: &mut Context) {
        let sentence = match refusal {
            Refusal::Parameters(sentence) => {
                self.counts.count_error("bad_parameters");
                sentence
            }
            Refusal::Token(error) => {
                context.record_refused_token(conn, error);
                error.message()
            }
        };
        context.send(conn, message::error(sentence));
        context.close(conn, CloseCause::Finished, &Member { room, id: None, state: "refused" });
    }

    /// Registers a connection under its id, and delivers what was held for it.
    fn open(&mut self, slot: Slot, context: &mut Context) {
        self.peers[slot].holder = None;
        self.insert_id(slot);
        let room = self.peers[slot].room;
        self.rooms[room].peer_count += 1;
        let conn = self.peers.conn(slot);
        let id = self.peers[slot].id.clone();
        context.registered(conn, &self.rooms[room].key, &id);
        context.send(conn, message::OPEN.to_owned());
        self.holds.on_registered(room, &id);
        self.deliver_held_messages(slot, &id, context);
    }

    /// Replaces the holder of an id by another connection of the same client.
    fn take_over(&mut self, slot: Slot, holder: Slot, context: &mut Context) {
        let claimants = self.take_claimants(holder, context);
        self.reject_claimants(claimants, context);
        let conn = self.peers.conn(holder);
        if let Some(member) = self.member(conn) {
            context.close(conn, CloseCause::Replaced, &member);
        }
        self.release_id(holder);
        self.peers.remove(holder);
        self.open(slot, context);
    }

    fn close(&mut self, slot: Slot, reason: CloseCause, context: &mut Context) {
        let conn = self.peers.conn(slot);
        if let Some(member) = self.member(conn) {
            context.close(conn, reason, &member);
        }
        self.remove_peer(slot, context);
    }

    /// Removes a connection. Its id passes to the first connection that claims it.
    fn remove_peer(&mut self, slot: Slot, context: &mut Context) {
        if let Some(holder) = self.peers[slot].holder {
            if let Some(claimants) = self.claimants.get_mut(&holder) {
                claimants.retain(|claimant| *claimant != slot);
            }
            self.peers.remove(slot);
            return;
        }
        let claimants = self.take_claimants(slot, context);
        self.release_id(slot);
        let (_, Peer { room, id, .. }) = self.peers.remove(slot);
        match claimants.split_first() {
            Some((first, others)) => {
                self.open(*first, context);
                self.reject_claimants(others.to_vec(), context);
            }
            None => {
                self.holds.on_departed(room, &id);
                self.remove_room_if_unused(room);
            }
        }
    }

    /// Removes a peer from the table of ids and from its room.
    fn release_id(&mut self, slot: Slot) {
        self.remove_id(slot);
        let room = self.peers[slot].room;
        self.rooms[room].peer_count -= 1;
    }

    // ---- Claimants ----

    /// Handles a failed probe: closes the holder if claimants are left.
    fn on_probe_failed(&mut self, holder: Slot, context: &mut Context) {
        if self.claimants.get(&holder).is_some_and(|claimants| !claimants.is_empty()) {
            self.close(holder, CloseCause::Replaced, context);
        } else {
            self.claimants.remove(&holder);
        }
    }

    /// Ends the probe of a holder and returns its claimants, oldest first, which are read again.
    ///
    /// The caller must open or reject them at once.
    fn take_claimants(&mut self, holder: Slot, context: &mut Context) -> Vec<Slot> {
        let Some(claimants) = self.claimants.remove(&holder) else {
            return Vec::new();
        };
        context.cancel_probe(self.peers.conn(holder));
        for claimant in &claimants {
            context.resume_reading(self.peers.conn(*claimant));
        }
        claimants
    }

    fn reject_claimants(&mut self, claimants: Vec<Slot>, context: &mut Context) {
        for claimant in claimants {
            self.reject(claimant, context);
        }
    }

    /// Sends `ID-TAKEN` and closes a connection that is not registered.
    fn reject(&mut self, slot: Slot, context: &mut Context) {
        self.counts.count_error("id_taken");
        let conn = self.peers.conn(slot);
        context.send(conn, message::ID_TAKEN.to_owned());
        if let Some(member) = self.member(conn) {
            context.close(conn, CloseCause::Finished, &member);
        }
        self.peers.remove(slot);
    }

    // ---- Rooms ----

    fn remove_room_if_unused(&mut self, index: u32) {
        if self.rooms[index].peer_count == 0 && !self.holds.has_room(index) {
            self.rooms.remove(index);
        }
    }

    // ---- Messages ----

    /// Handles a message. Malformed messages are counted and ignored, because the protocol has no error message.
    fn on_text(&mut self, slot: Slot, text: &str, context: &mut Context) {
        if self.peers[slot].holder.is_some() {
            debug_assert!(false, "reading from a claimant is paused");
            return;
        }
        match message::parse(text) {
            None => self.counts.count_error("not_understood"),
            Some(ClientMessage::Heartbeat) => self.counts.count_message("HEARTBEAT"),
            Some(ClientMessage::Leave) => {
                self.counts.count_message(Kind::Leave.name());
                self.close(slot, CloseCause::Finished, context);
            }
            Some(ClientMessage::Relay { kind, destination, payload }) => {
                self.counts.count_message(kind.name());
                self.relay(slot, kind, &destination, payload, context);
            }
        }
    }

    /// Forwards a message, or holds it for a peer that is not connected.
    fn relay(
        &mut self,
        slot: Slot,
        kind: Kind,
        destination: &str,
        payload: Option<&str>,
        context: &mut Context,
    ) {
        let Peer { room, id, .. } = &self.peers[slot];
        let room = *room;
        if let Some(receiver) = self.find_peer(room, destination) {
            let text = message::relayed(kind, id, destination, payload);
            let is_queued = context.forward(self.peers.conn(receiver), [text]);
            if !is_queued {
                self.counts.count_error("peer_busy");
                self.send_expire_if_awaited(slot, kind, destination, context);
            }
            return;
        }
        if kind == Kind::Leave {
            return;
        }
        if destination.len() > ID_BYTES_MAX {
            // No peer can have this id.
            self.counts.count_error("expired");
            return self.send_expire_if_awaited(slot, kind, destination, context);
        }
        let text = message::relayed(kind, id, destination, payload);
        let new_message = NewMessage { room, source: id, destination, kind, text };
        let outcome = self.holds.hold(new_message, context.now, |bytes| context.reserve(bytes));
        match outcome {
            Outcome::Held | Outcome::Late => {}
            Outcome::Dropped => self.counts.count_error("hold_full"),
            Outcome::Refused => {
                self.counts.count_error("hold_full");
                self.send_expire_if_awaited(slot, kind, destination, context);
            }
        }
    }

    /// Tells the sender of an offer or answer that it cannot be delivered. The protocol has no other message for that.
    fn send_expire_if_awaited(&self, slot: Slot, kind: Kind, destination: &str, context: &mut Context) {
        if kind.is_awaited() {
            let text = message::expire(&self.peers[slot].id, destination);
            context.send(self.peers.conn(slot), text);
        }
    }

    // ---- Held messages ----

    /// Delivers what was held for a peer that has registered.
    ///
    /// Each message was charged to its sender when it was sent. A sender is told once if an offer or answer is not delivered.
    fn deliver_held_messages(&mut self, slot: Slot, id: &str, context: &mut Context) {
        let room = self.peers[slot].room;
        let Delivery { messages, mut incomplete_sources } = self.holds.take(room, id);
        let conn = self.peers.conn(slot);
        for message in messages {
            if !context.forward(conn, [message.text]) {
                self.counts.count_error("peer_busy");
                if message.kind.is_awaited() {
                    incomplete_sources.insert(message.source);
                }
            }
        }
        for source in incomplete_sources {
            if let Some(source) = self.find_peer(room, &source) {
                context.send(self.peers.conn(source), message::expire(&self.peers[source].id, id));
            }
        }
    }

    /// Tells a sender that the receiver did not register in time.
    fn on_hold_expired(&mut self, context: &mut Context) {
        let Some(expired) = self.holds.expire_first(context.now) else {
            return;
        };
        let room = expired.room;
        if let Some((source, destination)) = expired.ids {
            self.counts.count_error("expired");
            if let Some(slot) = self.find_peer(room, &source) {
                context.send(self.peers.conn(slot), message::expire(&source, &destination));
            }
        }
        self.remove_room_if_unused(room);
    }
}
