//! The signaling protocol of noroshi: rooms, pairing and meshes.
//!
//! A peer registers an id with its first message (`ids`). It then takes part in one of two flows of its room:
//!
//! - **Pairing** (`connect`, module `pairing`) connects two peers. The first peer is asked for an offer, and
//!   the room delivers this offer to the peers that connect later. The first answer pairs its sender with the
//!   offerer. Further peers wait in the queue of the room. Candidates that arrive before the answer are
//!   stored with the offer.
//! - **Mesh** (`join`, module `mesh`) connects any number of peers. The server announces who joins and who
//!   leaves. The peers address offers, answers and candidates to each other by `target_id`.
//!
//! `leave` or a disconnect ends both. An offer, answer or candidate with a `target_id` is forwarded to that peer in any state,
//! except for an answer to an outdated offer, which is rejected with `offer_taken`, and early candidates of the offerer for a
//! peer that is not in the room yet, which are stored.
//!
//! Each message takes the same path: parse it (`message`), check its id, compute its cost (`cost`) and charge
//! it, then change the state and send messages (`send`). The output of a message that claims an id is charged later, when the
//! claim has succeeded. The sender of an invalid message is sent an error, and the connection stays open. After a rejected
//! claim, further messages with that id, except `connect` and `join`, are only counted. A ping (`ping`) takes a shorter path: it
//! has no id to check and changes nothing.
//!
//! Invariants, see `check`:
//!
//! - Peers refer to each other by slot. All references to a peer are removed before its slot is freed.
//! - In a room of n peers, an input costs O(log n), not counting the messages that it sends.
//! - Hash tables are never iterated, so that equal inputs have equal effects.
//!
//! `PROTOCOL.md` in the folder of this module specifies the protocol.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::RandomState;
use std::time::Duration;

use hashbrown::HashTable;

use crate::config::{Config, Endpoint};
use crate::http::query::Query;
use crate::http::token::Claims;
use crate::limits::ROOM_BYTES_MAX;
use crate::message::Message;
use crate::metrics::Counts;
use crate::protocol::{CloseCause, Conn, Context, Descriptor, Member, Protocol, Route, Target, TokenPlace};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::ice::IceServers;
use crate::protocols::list::ListNodes;
use crate::protocols::name_table::NameTable;
use crate::rate_limit::{Verdict, credits_for_bytes};
use crate::timestamp::Timestamp;
use message::{Body, ClientMessage, Code, ErrorReply, Kind, SignalingMessage};

mod check;
mod cost;
mod handshakes;
mod ids;
mod mesh;
pub mod message;
mod pairing;
mod peer;
mod ping;
mod room;
mod send;

use handshakes::{Handshakes, Outcome};
use ids::{ID_MISMATCH, IdCheck};
use peer::{Flow, Peer, Registration};
use room::Room;

/// All rooms and peers.
pub struct Noroshi {
    mesh_peers_max: usize,
    ice: IceServers,
    peers: ConnTable<Peer>,
    /// Links of all lists of peers. A peer is in at most one list.
    list_nodes: ListNodes,
    rooms: NameTable<Room>,
    /// Registered peers by room and id. An entry is a slot of four bytes; the key is in the peer. The hashes
    /// are keyed at random, because clients choose ids and names of rooms.
    peers_by_id: HashTable<Slot>,
    hasher: RandomState,
    /// The deadlines of all rooms that have one.
    timers: BTreeSet<(Timestamp, u32)>,
    /// Well-formed messages since the start, by [`Kind`].
    message_counts: [u64; Kind::ALL.len()],
    /// Rejected messages since the start, by [`Code`]. Not all of them are answered.
    error_counts: [u64; Code::ALL.len()],
    handshakes: Handshakes,
}

const NO_MEMORY: ErrorReply =
    ErrorReply { code: Code::TooMany, message: "the memory limit of the server is reached; try again later" };
const RATE_LIMITED: ErrorReply =
    ErrorReply { code: Code::RateLimited, message: "the rate limit is exceeded; this message was dropped" };

fn error<T>(code: Code, message: &'static str) -> Result<T, ErrorReply> {
    Err(ErrorReply { code, message })
}

/// Registers the protocol.
pub static DESCRIPTOR: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "noroshi",
        title: "noroshi",
        default_path: "/ws",
        is_always_on: true,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: false,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: None,
        stored_bytes_max: 0,
    },
    token_place: TokenPlace::Request,
    route,
    new: |config, key| Box::new(Noroshi::new(config, key)),
};

/// Returns the room that a path names. No name is the default room, and a slash at the end is ignored.
fn route(below: Option<&str>, _: &Query) -> Route {
    let below = below.unwrap_or_default();
    if below.is_empty() {
        return Route::Room(String::new());
    }
    let room = below.strip_suffix('/').unwrap_or(below);
    if is_room_name(room) {
        Route::Room(room.to_owned())
    } else {
        Route::Invalid("expected a room of 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
    }
}

/// Returns whether a room may have this name: unreserved characters of URLs (RFC 3986 section 2.3), except for the two
/// names that mean a folder.
fn is_room_name(name: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let has_valid_length = (1..=ROOM_BYTES_MAX).contains(&name.len());
    has_valid_length && name.bytes().all(is_unreserved) && name != "." && name != ".."
}

impl Protocol for Noroshi {
    /// # Panics
    /// If a connection connects in a slot that another connection still uses.
    fn on_connect(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>, _: &mut Context) {
        self.add_peer(conn, &target.room, claims);
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            // An empty text is rejected as `bad_json`.
            self.on_text(slot, message.text().unwrap_or_default(), context);
        }
    }

    fn on_message_dropped(&mut self, conn: Conn, notify: bool, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            self.on_rate_exceeded(slot, Verdict::Drop { notify }, context);
        }
    }

    fn on_alive(&mut self, conn: Conn, context: &mut Context) {
        if let Some(slot) = self.peers.find(conn) {
            self.on_probe_answered(slot, context);
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
        self.on_room_timeout(context);
    }

    fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(deadline, _)| deadline.get())
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.rooms.find(&target.room).is_some()
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let peer = self.peer(self.peers.find(conn)?);
        let room = &self.rooms[peer.room].name;
        Some(Member { room, id: peer.id().map(Cow::from), state: peer.state() })
    }

    fn renew(&mut self, config: &Config) {
        self.ice = IceServers::new(config);
    }

    fn counts(&self, now: Duration) -> Counts {
        Counts {
            gauges: Vec::new(),
            deliveries: None,
            peers: self.peers_by_id.len(),
            rooms: self.rooms.len(),
            messages: Kind::ALL.map(Kind::name).into_iter().zip(self.message_counts).collect(),
            errors: Code::ALL.map(Code::name).into_iter().zip(self.error_counts).collect(),
            handshakes: Some(self.handshakes.counts(now)),
        }
    }

    fn check(&self) {
        self.check_invariants();
    }
}

impl Noroshi {
    /// Creates the protocol without rooms. `key` makes hashes of ids and of names of rooms unpredictable.
    pub fn new(config: &Config, key: RandomState) -> Noroshi {
        Noroshi {
            mesh_peers_max: config.mesh_peers_max,
            ice: IceServers::new(config),
            peers: ConnTable::NEW,
            list_nodes: ListNodes::default(),
            rooms: NameTable::new(key.clone()),
            peers_by_id: HashTable::new(),
            hasher: key,
            timers: BTreeSet::new(),
            message_counts: Default::default(),
            error_counts: Default::default(),
            handshakes: Handshakes::default(),
        }
    }

    // ---- Connections ----

    /// Adds a connection to its room, and creates the room if necessary.
    fn add_peer(&mut self, conn: Conn, room_name: &str, token_claims: Option<&Claims>) {
        let room = match self.rooms.find(room_name) {
            Some(room) => room,
            None => self.rooms.insert(Room::new(room_name)),
        };
        self.rooms[room].member_count += 1;
        let slot = self.peers.insert(conn, Peer::new(room, token_claims));
        self.list_nodes.ensure_slot(slot);
    }

    /// Removes a connection and everything that refers to it.
    ///
    /// The room is removed with its last connection.
    fn remove_peer(&mut self, slot: Slot, context: &mut Context) {
        self.leave_flow(slot, context);
        let room = self.peer(slot).room;
        self.release_id(slot, context);
        self.peers.remove(slot);
        self.rooms[room].member_count -= 1;
        if self.rooms[room].member_count == 0 {
            self.rooms.remove(room);
        }
    }

    fn close(&mut self, slot: Slot, reason: CloseCause, context: &mut Context) {
        let conn = self.peers.conn(slot);
        if let Some(member) = self.member(conn) {
            context.close(conn, reason, &member);
        }
        self.remove_peer(slot, context);
    }

    /// Makes a peer idle and notifies the peers that its flow concerns.
    fn leave_flow(&mut self, slot: Slot, context: &mut Context) {
        self.handshakes.on_peer_left(slot, context.now);
        let room = self.peer(slot).room;
        match self.peer(slot).flow {
            Flow::Idle => {}
            Flow::Offerer => self.rooms[room].offerer = None,
            Flow::Queued => self.leave_queue(slot),
            Flow::HoldingOffer(_) => self.release_offer(slot),
            Flow::Paired(partner) => {
                self.peer_mut(partner).flow = Flow::Idle;
                self.send_peer_left(slot, partner, context);
            }
            Flow::Joined => self.leave_mesh(slot, context),
        }
        self.peer_mut(slot).flow = Flow::Idle;
        self.retract_offer(slot, context);
        self.advance(room, context);
    }

    // ---- Messages ----

    /// Handles a message. Checks and charges it before any state changes.
    ///
    /// The output of a message that claims an id is an exception, see [`Noroshi::process_claiming_message`].
    fn on_text(&mut self, slot: Slot, text: &str, context: &mut Context) {
        if let Registration::Claimant(_) = self.peer(slot).registration {
            debug_assert!(false, "reading from a claimant is paused");
            return;
        }
        let message = match message::parse(text) {
            Ok(ClientMessage::Signaling(message)) => message,
            Ok(ClientMessage::Ping { wants_ice_servers }) => {
                return self.on_ping(slot, wants_ice_servers, text.len(), context);
            }
            Err((error, target)) => return self.send_error(slot, error, target.as_deref(), context),
        };
        let SignalingMessage { id, target, body } = &message;
        let target = target.as_deref();
        let id_check = self.check_id(slot, id, body);
        let credits = self.message_cost(slot, id_check, target, body, text.len());
        let verdict = context.charge(self.peers.conn(slot), credits, text.len());
        if verdict != Verdict::Pass {
            return self.on_rate_exceeded(slot, verdict, context);
        }
        self.message_counts[body.kind() as usize] += 1;
        match id_check {
            IdCheck::Own => {}
            IdCheck::Free => self.register(slot, id, context),
            IdCheck::TakeOver(holder) => self.take_over_id(slot, holder, id, context),
            IdCheck::Claim(holder) => {
                if let Err(error) = self.claim_id(slot, holder, target, text, context) {
                    self.send_error(slot, error, target, context);
                }
                return;
            }
            IdCheck::Taken => return self.reject_id(slot, id, target, context),
            IdCheck::Mismatch => return self.send_error(slot, ID_MISMATCH, target, context),
            IdCheck::RejectedBefore => {
                self.error_counts[Code::IdTaken as usize] += 1;
                return;
            }
        }
        self.process(slot, target, body, context);
    }

    /// Processes the message that claimed an id, after the claim succeeded.
    ///
    /// The output that it causes was not charged before, because the claim could fail.
    fn process_claiming_message(
        &mut self,
        slot: Slot,
        message: &SignalingMessage,
        bytes: usize,
        context: &mut Context,
    ) {
        let target = message.target.as_deref();
        let credits = credits_for_bytes(bytes) + self.output_cost(slot, target, &message.body);
        let verdict = context.charge(self.peers.conn(slot), credits, bytes);
        if verdict != Verdict::Pass {
            return self.on_rate_exceeded(slot, verdict, context);
        }
        self.process(slot, target, &message.body, context);
    }

    /// Handles a message over the rate limit.
    ///
    /// Sends an error, counts it without sending, or closes the connection, depending on the verdict.
    fn on_rate_exceeded(&mut self, slot: Slot, verdict: Verdict, context: &mut Context) {
        match verdict {
            Verdict::Pass => {}
            Verdict::Drop { notify: true } => self.send_error(slot, RATE_LIMITED, None, context),
            Verdict::Drop { notify: false } => self.error_counts[RATE_LIMITED.code as usize] += 1,
            Verdict::Close => self.close(slot, CloseCause::RateLimited, context),
        }
    }

    /// Processes a message of a registered peer, or sends an error.
    fn process(&mut self, slot: Slot, target: Option<&str>, body: &Body, context: &mut Context) {
        if let Err(error) = self.try_process(slot, target, body, context) {
            self.send_error(slot, error, target, context);
        }
    }

    fn try_process(
        &mut self,
        slot: Slot,
        target: Option<&str>,
        body: &Body,
        context: &mut Context,
    ) -> Result<(), ErrorReply> {
        match body {
            Body::Connect => {
                self.handle_connect(slot, context);
                Ok(())
            }
            Body::Offer(sdp) => {
                let target = self.resolve_target(slot, target);
                let result = target.and_then(|target| self.handle_offer(slot, target, sdp, context));
                if result.is_err() {
                    self.handshakes.count(Outcome::Rejected, 1);
                }
                result
            }
            Body::Answer(sdp) => {
                let target = self.resolve_target(slot, target)?;
                self.handle_answer(slot, target, sdp, context)
            }
            Body::Candidates(candidates) => self.handle_candidates(slot, target, candidates, context),
            Body::Join => self.handle_join(slot, context),
            Body::Leave => {
                self.leave_flow(slot, context);
                Ok(())
            }
        }
    }

    // ---- Lookups ----

    fn peer(&self, slot: Slot) -> &Peer {
        &self.peers[slot]
    }

    fn peer_mut(&mut self, slot: Slot) -> &mut Peer {
        &mut self.peers[slot]
    }

    /// Returns the id of a registered peer.
    fn id(&self, slot: Slot) -> &str {
        self.peer(slot).id().expect("a peer in a flow is registered")
    }

    /// Finds the peer that `target_id` names, which must not be the sender.
    ///
    /// # Errors
    /// [`Code::UnknownPeer`]
    fn resolve_target(&self, slot: Slot, target: Option<&str>) -> Result<Option<Slot>, ErrorReply> {
        let Some(id) = target else {
            return Ok(None);
        };
        // Most messages name the partner. This saves hashing the id.
        if let Flow::Paired(partner) = self.peer(slot).flow
            && self.id(partner) == id
        {
            return Ok(Some(partner));
        }
        match self.find_peer(self.peer(slot).room, id) {
            Some(target) if target != slot => Ok(Some(target)),
            _ => error(Code::UnknownPeer, "target_id: expected the id of another peer in this room"),
        }
    }
}
