//! The signaling rules: who is paired with whom, who waits, who hears what.
//!
//! No socket, no clock, no log, no randomness in here. One [`Input`] goes in, with the time as an argument;
//! effects come out into the [`Outbox`] that the caller hands in, all of them before [`Hub::handle`] returns.
//! Nothing a peer sends is an error of the hub's: the answer to a wrong message is a message.
//!
//! The rules in a paragraph. A room pairs the peers that `connect`: the first is asked for an offer, the offer
//! stands until somebody answers it, whoever comes meanwhile is handed it or waits in the line. `join` leads into
//! the mesh of the room instead, where everybody addresses everybody. A second connection that claims an id waits
//! until a probe has shown whether the holder is alive.
//!
//! Whatever a peer does costs O(log n) in a room of n, but for telling those who must be told. Hash maps are
//! never iterated, so that the same inputs have the same effects.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;

use crate::config::{
    CANDIDATES_MAX, Config, KEPT_BYTES_MAX, KEPT_MESSAGES_MAX, PATIENCE, PROBE_TIME_MAX, RATE_BLOCK_BYTES,
    STORED_BYTES_MAX,
};
use crate::ice::Ice;
use crate::message::{self, Body, Candidates, Code, Kind, Refusal, Reply, Request};
use crate::rate::{Bucket, Rate, Verdict};
use crate::token::Claims;

/// A connection: a number that is never used again, and a slot of a table, which is. The two share 64 bits, so
/// that a long-lived reference costs eight bytes and can never reach the successor in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conn(u64);

impl Conn {
    const SLOT_BITS: u32 = 24;

    /// The connection of this number (below 2^40: thirty years at a thousand a second) in this slot.
    ///
    /// # Panics
    /// If the slot is 2^24 or more; `--max-connections` stays far below.
    pub fn new(number: u64, slot: usize) -> Conn {
        assert!(slot < 1 << Self::SLOT_BITS);
        Conn(number << Self::SLOT_BITS | slot as u64)
    }

    /// Counted from the start of the server.
    pub fn number(self) -> u64 {
        self.0 >> Self::SLOT_BITS
    }

    /// Its place in the tables.
    pub fn slot(self) -> usize {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as usize
    }
}

/// All that can happen.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A connection to the room of this name (empty: the default room) is open, of whom its token, where one is needed,
    /// says this.
    Connected(Conn, &'a str, Option<&'a Claims>),
    /// It sent a message of text. A holder of an id that is probed is not alive by this alone.
    Text(Conn, &'a str),
    /// It sent a message of bytes, which are taken for text.
    Binary(Conn, &'a [u8]),
    /// Something arrived from it, be it a pong or half a frame.
    Alive(Conn),
    /// It is gone, or about to be: nothing more is sent to it.
    Disconnected(Conn),
    /// Time has passed. Due at [`Hub::wake_at`], allowed at any time.
    Time,
}

/// All that the hub can do.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Send this message.
    Send(Conn, String),
    /// Send a WebSocket ping, so that a living peer shows life.
    Ping(Conn),
    /// Close the connection. The hub has forgotten it but for its name; `Disconnected` is still to be told.
    Close(Conn, Close),
    /// The connection has an id from now on. For the log.
    Registered {
        /// The connection.
        conn: Conn,
        /// Its room.
        room: &'a str,
        /// Its id.
        id: &'a str,
    },
}

/// Why the hub closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It showed no life while another claimed its id.
    Replaced,
    /// It went on sending too much.
    RateLimited,
}

/// Where effects go, in order.
pub trait Outbox {
    /// Whether all of these can still be queued for the peer. Asked before an offer, an answer or candidates are
    /// forwarded; what the server itself has to say is sent in any case.
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool;
    /// Whether the hub may keep so many bytes more than it does. Asked before an offer, candidates or what a claimant
    /// sends are kept.
    fn may_keep(&mut self, bytes: usize) -> bool;
    /// Takes an effect.
    fn push(&mut self, effect: Effect<'_>);
}

/// What was counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Well-formed messages, by [`Kind`].
    pub messages: [u64; Kind::ALL.len()],
    /// Refused messages, by [`Code`].
    pub errors: [u64; Code::ALL.len()],
}

/// All rooms and peers.
pub struct Hub {
    mesh_peers_max: usize,
    ice: Ice,
    /// What time it was, since 1970, when the hub's time began.
    epoch: Duration,
    rate: Option<Rate>,
    /// By slot.
    peers: Vec<Option<Peer>>,
    registered: usize,
    rooms: Slab<Room>,
    room_names: HashMap<Rc<str>, usize>,
    /// When to wake up for what. A room and a claim know their entry, and take it out when it is void.
    alarms: BTreeSet<(Duration, Alarm)>,
    /// Offers so far: an offer is known by its number, not by its owner.
    offers: u64,
    /// Bytes of what peers have said that are kept. What is kept no longer is taken off by `recount` only.
    kept: usize,
    tally: Tally,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    /// This room has not moved for too long.
    Patience(usize),
    /// The holder of this id in this room had its time.
    Probe(usize, Rc<str>),
}

struct Room {
    name: Rc<str>,
    /// Connections in it, registered or not. The room goes with the last.
    members: usize,
    ids: HashMap<Rc<str>, Conn>,
    /// Probes that are running, by the id in question.
    claims: HashMap<Rc<str>, Claim>,
    /// Who was asked for an offer, or whose offer stands.
    offerer: Option<Conn>,
    /// Who waits, first come first.
    line: Queue,
    /// Who joined, oldest first.
    mesh: Queue,
    /// When the room moves on all the same. Set while somebody waits.
    patience: Option<Duration>,
    /// Whether it has moved since `settle` last looked.
    moved: bool,
}

/// A probe of the holder of an id.
struct Claim {
    until: Duration,
    claimants: Queue,
}

struct Peer {
    conn: Conn,
    room: usize,
    /// What its token says, where one is needed.
    claims: Option<Box<Claims>>,
    /// Set once and for all; kept after `Closed`, for the log.
    id: Option<Rc<str>>,
    state: State,
    /// Boxed, because most peers have no offer most of the time.
    offering: Option<Box<Offering>>,
    /// Its last offer was refused: candidates without a target belong to that offer, and are dropped.
    refused: bool,
    /// The id is claimed, and any sign of life will do.
    probed: bool,
    bucket: Bucket,
}

enum State {
    /// Has no id yet.
    Nameless,
    /// Claims an id that somebody holds.
    Claimant(Box<Claimant>),
    /// Registered, in no flow.
    Idle,
    /// Was asked for an offer, or its offer stands.
    Offerer,
    /// In the line, with this ticket.
    Waiting(i64),
    /// Was handed an offer, which may have been taken or replaced since.
    Handed(Hold),
    /// Has a partner.
    Paired(Conn),
    /// In the mesh, with this ticket.
    Joined(i64),
    /// Closed by the hub; not yet disconnected.
    Closed,
}

struct Claimant {
    id: Rc<str>,
    /// Among the claimants.
    ticket: i64,
    /// The message that claims it.
    first: Box<str>,
    /// What came after that.
    kept: VecDeque<Box<str>>,
    kept_bytes: usize,
    /// Ids that this connection claimed before, in vain.
    taken: BTreeSet<Rc<str>>,
}

#[derive(Clone, Copy)]
struct Hold {
    owner: Conn,
    /// The number of the offer.
    offer: u64,
    /// Among the holders.
    ticket: i64,
}

#[derive(Default)]
struct Offering {
    /// The offer that stands.
    offer: Option<Offer>,
    /// Those who were handed an offer of this peer, standing or not, and have not answered it.
    holders: Queue,
    /// Candidates for the offer that stands or is to come, joined by `|`.
    candidates: String,
    /// How many they are.
    candidate_count: usize,
}

struct Offer {
    number: u64,
    /// The message that hands it out.
    text: String,
    /// How many of the holders hold this one.
    held: usize,
    /// Whether anybody was ever handed it.
    handed: bool,
}

/// Connections in an order, with removal from anywhere in O(log n).
#[derive(Default)]
struct Queue(BTreeMap<i64, Conn>);

impl Queue {
    fn push_back(&mut self, conn: Conn) -> i64 {
        let ticket = self.0.last_key_value().map_or(0, |(last, _)| last + 1);
        self.0.insert(ticket, conn);
        ticket
    }

    fn push_front(&mut self, conn: Conn) -> i64 {
        let ticket = self.0.first_key_value().map_or(0, |(first, _)| first - 1);
        self.0.insert(ticket, conn);
        ticket
    }

    fn pop_front(&mut self) -> Option<Conn> {
        self.0.pop_first().map(|(_, conn)| conn)
    }

    fn remove(&mut self, ticket: i64) {
        self.0.remove(&ticket).expect("a ticket is in its queue");
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = Conn> {
        self.0.values().copied()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the handling of one input needs at every step.
struct Turn<'a> {
    now: Duration,
    out: &'a mut dyn Outbox,
}

impl Turn<'_> {
    /// Says something of the server's own.
    fn tell(&mut self, to: Conn, reply: &Reply) {
        self.out.push(Effect::Send(to, reply.text()));
    }

    /// Passes on what peers said, all of it or nothing.
    fn forward<T>(&mut self, to: Conn, texts: T) -> Result<(), Refusal>
    where
        T: AsRef<[String]> + IntoIterator<Item = String>,
    {
        if !self.out.has_room(to, texts.as_ref()) {
            return refused(Code::PeerBusy, "the queue of that peer is full; try again later");
        }
        for text in texts {
            self.out.push(Effect::Send(to, text));
        }
        Ok(())
    }
}

const FOREIGN_ID: Refusal =
    Refusal { code: Code::IdMismatch, message: "this connection speaks as another id" };
const ID_TAKEN: Refusal = Refusal { code: Code::IdTaken, message: "the id belongs to a peer that is here" };
const NO_MEMORY: Refusal =
    Refusal { code: Code::TooMany, message: "the server's memory is used up; try again later" };

fn refused<T>(code: Code, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal { code, message })
}

/// How often a message counts towards the rate, by its size.
fn blocks(text: &str) -> usize {
    text.len().div_ceil(RATE_BLOCK_BYTES).max(1)
}

impl Hub {
    /// A hub without rooms.
    pub fn new(config: &Config) -> Hub {
        Hub {
            mesh_peers_max: config.mesh_peers_max,
            ice: Ice::new(config),
            epoch: Duration::ZERO,
            rate: Rate::per_second(config.rate_max),
            peers: Vec::new(),
            registered: 0,
            rooms: Slab::new(),
            room_names: HashMap::new(),
            alarms: BTreeSet::new(),
            offers: 0,
            kept: 0,
            tally: Tally::default(),
        }
    }

    /// Takes one input. `now` is the time since any fixed moment and never goes back. Inputs of connections that
    /// are unknown, or that the hub has closed, are ignored.
    ///
    /// # Panics
    /// If a connection connects in a slot that another still has.
    pub fn handle(&mut self, now: Duration, input: Input<'_>, out: &mut dyn Outbox) {
        let turn = &mut Turn { now, out };
        match input {
            Input::Connected(conn, room, claims) => self.enter(conn, room, claims),
            Input::Text(conn, text) => self.text(conn, text, turn),
            // What is not UTF-8 is no JSON, and neither is nothing.
            Input::Binary(conn, bytes) => self.text(conn, str::from_utf8(bytes).unwrap_or_default(), turn),
            Input::Alive(conn) => self.alive(conn, turn),
            Input::Disconnected(conn) => self.exit(conn, turn),
            Input::Time => self.ring(turn),
        }
    }

    /// Says what time it was, since 1970, at the moment from which `now` is counted. For credentials: peers and TURN
    /// servers go by the clock on the wall, which may be set at any time.
    pub fn set_epoch(&mut self, epoch: Duration) {
        self.epoch = epoch;
    }

    /// From now on passwords for TURN are made from the secret that is in here.
    pub fn renew(&mut self, config: &Config) {
        self.ice = Ice::new(config);
    }

    /// When [`Input::Time`] is due next.
    pub fn wake_at(&self) -> Option<Duration> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// How many peers have an id.
    pub fn peers(&self) -> usize {
        self.registered
    }

    /// How many rooms somebody is in.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// The counts since the start.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many bytes of offers, candidates and claims are kept, at most: see [`Hub::recount`].
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Counts what is kept anew. Growth is counted at once, but that something is gone is known only after this, which
    /// looks at all peers: enough for a limit, if it is done now and then.
    pub fn recount(&mut self) {
        self.kept = self.peers.iter().flatten().map(Peer::kept).sum();
    }

    /// The room of a connection, and its id if it has registered one.
    pub fn who(&self, conn: Conn) -> Option<(&str, Option<&str>)> {
        let peer = self.find(conn)?;
        Some((&self.rooms[peer.room].name, peer.id.as_deref()))
    }

    // ---- Coming and going ----

    fn enter(&mut self, conn: Conn, name: &str, claims: Option<&Claims>) {
        let room = match self.room_names.get(name) {
            Some(&room) => room,
            None => {
                let name: Rc<str> = name.into();
                let room = self.rooms.insert(Room::new(name.clone()));
                self.room_names.insert(name, room);
                room
            }
        };
        self.rooms[room].members += 1;
        if self.peers.len() <= conn.slot() {
            self.peers.resize_with(conn.slot() + 1, || None);
        }
        let slot = &mut self.peers[conn.slot()];
        assert!(slot.is_none(), "a slot has one connection at a time");
        *slot = Some(Peer::new(conn, room, claims));
    }

    fn exit(&mut self, conn: Conn, turn: &mut Turn) {
        if self.find(conn).is_none() {
            return;
        }
        self.depart(conn, turn);
        self.retire(conn, turn);
        let room = self.peer(conn).room;
        self.peers[conn.slot()] = None;
        self.rooms[room].members -= 1;
        if self.rooms[room].members == 0 {
            let room = self.rooms.remove(room);
            self.room_names.remove(&room.name);
        }
    }

    fn close(&mut self, conn: Conn, why: Close, turn: &mut Turn) {
        self.depart(conn, turn);
        turn.out.push(Effect::Close(conn, why));
        self.retire(conn, turn);
    }

    /// Takes the id, or the claim of one, from a connection that has departed. It stays a member of its room.
    fn retire(&mut self, conn: Conn, turn: &mut Turn) {
        let peer = self.peer_mut(conn);
        let (room, id) = (peer.room, peer.id.clone());
        match mem::replace(&mut peer.state, State::Closed) {
            State::Nameless | State::Closed => {}
            State::Claimant(claimant) => {
                let claim = self.rooms[room].claims.get_mut(&claimant.id);
                claim.expect("a claimant has a claim").claimants.remove(claimant.ticket);
            }
            _ => {
                let id = id.expect("a peer in a flow is registered");
                self.rooms[room].ids.remove(&id);
                self.registered -= 1;
                if let Some(claim) = self.end_claim(conn) {
                    self.award(&id, &claim, turn);
                }
            }
        }
    }

    /// Wakes up for what is due.
    fn ring(&mut self, turn: &mut Turn) {
        while self.wake_at().is_some_and(|at| at <= turn.now) {
            let (_, alarm) = self.alarms.pop_first().expect("something is due");
            match alarm {
                Alarm::Patience(room) => self.lose_patience(room, turn),
                Alarm::Probe(room, id) => {
                    let holder = self.rooms[room].ids[&id];
                    self.close(holder, Close::Replaced, turn);
                }
            }
        }
    }

    // ---- A message ----

    fn text(&mut self, conn: Conn, text: &str, turn: &mut Turn) {
        let Some(peer) = self.find(conn) else { return };
        if matches!(peer.state, State::Closed) || !self.pay(conn, blocks(text), 0, turn) {
            return;
        }
        let peer = self.peer_mut(conn);
        let State::Claimant(claimant) = &mut peer.state else {
            return self.obey(conn, text, &BTreeSet::new(), turn);
        };
        let is_full =
            claimant.kept_bytes + text.len() > KEPT_BYTES_MAX || claimant.kept.len() >= KEPT_MESSAGES_MAX;
        if is_full || !turn.out.may_keep(text.len()) {
            let verdict = peer.bucket.offend(turn.now);
            self.sentence(conn, verdict, turn);
        } else {
            claimant.kept_bytes += text.len();
            claimant.kept.push_back(text.into());
            self.kept += text.len();
        }
    }

    /// Takes tokens for a message, of which some are paid. If there are too few, the message is to be dropped.
    fn pay(&mut self, conn: Conn, tokens: usize, paid: usize, turn: &mut Turn) -> bool {
        let rate = self.rate;
        let verdict = self.peer_mut(conn).bucket.pay(rate, tokens, paid, turn.now);
        self.sentence(conn, verdict, turn);
        verdict == Verdict::Pass
    }

    fn sentence(&mut self, conn: Conn, verdict: Verdict, turn: &mut Turn) {
        let refusal = Refusal { code: Code::RateLimited, message: "too many messages; this one was dropped" };
        match verdict {
            Verdict::Pass => {}
            Verdict::Drop { tell: true } => self.refuse(conn, refusal, None, turn),
            Verdict::Drop { tell: false } => self.tally.errors[refusal.code as usize] += 1,
            Verdict::Close => self.close(conn, Close::RateLimited, turn),
        }
    }

    /// Does what a message says, which is paid for but for its candidates. If it was kept while its sender claimed
    /// ids, those that were `taken` are not claimed again.
    fn obey(&mut self, conn: Conn, text: &str, taken: &BTreeSet<Rc<str>>, turn: &mut Turn) {
        let Request { id, target, body } = match message::parse(text) {
            Ok(request) => request,
            Err((refusal, target)) => return self.refuse(conn, refusal, target.as_deref(), turn),
        };
        if taken.contains(&*id) {
            return;
        }
        let mut rivals = None;
        if self.peer(conn).id.is_none()
            && let Some(holder) = self.lookup(conn, &id)
        {
            if !self.peer(conn).may_speak_as(&id) {
                return self.refuse(conn, FOREIGN_ID, target.as_deref(), turn);
            }
            if self.peer(conn).owns_its_id() {
                rivals = self.end_claim(holder);
                self.close(holder, Close::Replaced, turn);
            } else if self.peer(holder).owns_its_id() {
                self.tally.messages[body.kind() as usize] += 1;
                return self.refuse(conn, ID_TAKEN, target.as_deref(), turn);
            }
        }
        if self.peer(conn).id.is_none() && self.lookup(conn, &id).is_some() {
            if !turn.out.may_keep(text.len()) {
                return self.refuse(conn, NO_MEMORY, target.as_deref(), turn);
            }
            return self.claim(conn, &id, text, turn);
        }
        if let Body::Candidates(candidates) = &body
            && !self.pay(conn, candidates.len(), blocks(text), turn)
        {
            return;
        }
        self.tally.messages[body.kind() as usize] += 1;
        let served = match &self.peer(conn).id {
            None if !self.peer(conn).may_speak_as(&id) => Err(FOREIGN_ID),
            None => {
                self.register(conn, id.as_ref().into(), turn);
                self.serve(conn, target.as_deref(), &body, turn)
            }
            Some(own) if **own == *id => self.serve(conn, target.as_deref(), &body, turn),
            Some(_) => Err(FOREIGN_ID),
        };
        if let Err(refusal) = served {
            self.refuse(conn, refusal, target.as_deref(), turn);
        }
        for rival in rivals.iter().flat_map(|claim| claim.claimants.iter()) {
            self.reject(rival, turn);
        }
    }

    fn serve(
        &mut self,
        conn: Conn,
        target: Option<&str>,
        body: &Body,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        match body {
            Body::Connect => self.connect(conn, turn),
            Body::Offer(sdp) => return self.offer(conn, self.target(conn, target)?, sdp, turn),
            Body::Answer(sdp) => return self.answer(conn, self.target(conn, target)?, sdp, turn),
            Body::Candidates(candidates) => return self.candidates(conn, target, candidates, turn),
            Body::Join => return self.join(conn, turn),
            Body::Leave => self.depart(conn, turn),
        }
        Ok(())
    }

    /// Says something of the server's own after which a peer connects to another.
    fn tell_with_ice(&self, to: Conn, text: String, turn: &mut Turn) {
        let until = self.peer(to).claims.as_ref().map(|claims| claims.until);
        let servers = self.ice.servers(self.id(to), self.epoch + turn.now, until);
        turn.out.push(Effect::Send(to, message::with_ice_servers(text, &servers)));
    }

    fn refuse(&mut self, conn: Conn, refusal: Refusal, target: Option<&str>, turn: &mut Turn) {
        self.tally.errors[refusal.code as usize] += 1;
        turn.tell(conn, &Reply::Error { refusal, target });
    }

    // ---- Ids ----

    fn register(&mut self, conn: Conn, id: Rc<str>, turn: &mut Turn) {
        let peer = self.peer_mut(conn);
        peer.id = Some(id.clone());
        peer.state = State::Idle;
        let room = peer.room;
        let room = &mut self.rooms[room];
        turn.out.push(Effect::Registered { conn, room: &room.name, id: &id });
        room.ids.insert(id, conn);
        self.registered += 1;
    }

    /// A connection says its first message under an id that another holds: it waits for the probe.
    fn claim(&mut self, conn: Conn, id: &str, text: &str, turn: &mut Turn) {
        self.kept += text.len();
        let holder = self.lookup(conn, id).expect("somebody holds the id");
        let until = turn.now + PROBE_TIME_MAX;
        let peer = self.peer_mut(holder);
        let (room, id) = (peer.room, peer.id.clone().expect("a holder has the id"));
        if !mem::replace(&mut peer.probed, true) {
            let claim = Claim { until, claimants: Queue::default() };
            self.rooms[room].claims.insert(id.clone(), claim);
            self.alarms.insert((until, Alarm::Probe(room, id.clone())));
            turn.out.push(Effect::Ping(holder));
        }
        let claim = self.rooms[room].claims.get_mut(&id).expect("a probed id has a claim");
        let ticket = claim.claimants.push_back(conn);
        let claimant = Claimant {
            id,
            ticket,
            first: text.into(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            taken: BTreeSet::new(),
        };
        self.peer_mut(conn).state = State::Claimant(Box::new(claimant));
    }

    /// A sign of life ends the probe in favour of the holder.
    fn alive(&mut self, conn: Conn, turn: &mut Turn) {
        if let Some(claim) = self.end_claim(conn) {
            for claimant in claim.claimants.iter() {
                self.reject(claimant, turn);
            }
        }
    }

    /// Takes down the probe of a holder, if there is one.
    fn end_claim(&mut self, holder: Conn) -> Option<Claim> {
        let peer = self.find_mut(holder)?;
        if !mem::take(&mut peer.probed) {
            return None;
        }
        let (room, id) = (peer.room, peer.id.clone().expect("a holder has the id"));
        let claim = self.rooms[room].claims.remove(&id).expect("a probed id has a claim");
        self.alarms.remove(&(claim.until, Alarm::Probe(room, id)));
        Some(claim)
    }

    /// The holder is gone: the first claimant has the id, the others have not.
    fn award(&mut self, id: &Rc<str>, claim: &Claim, turn: &mut Turn) {
        let mut claimants = claim.claimants.iter();
        if let Some(first) = claimants.next() {
            let claimant = self.end_waiting(first);
            self.register(first, id.clone(), turn);
            self.obey(first, &claimant.first, &claimant.taken, turn);
            self.replay(first, claimant, turn);
        }
        for claimant in claimants {
            self.reject(claimant, turn);
        }
    }

    fn reject(&mut self, conn: Conn, turn: &mut Turn) {
        let mut claimant = self.end_waiting(conn);
        let request = message::parse(&claimant.first).expect("a claim is well-formed");
        self.tally.messages[request.body.kind() as usize] += 1;
        self.refuse(conn, ID_TAKEN, request.target.as_deref(), turn);
        claimant.taken.insert(claimant.id.clone());
        self.replay(conn, claimant, turn);
    }

    fn end_waiting(&mut self, conn: Conn) -> Claimant {
        match mem::replace(&mut self.peer_mut(conn).state, State::Nameless) {
            State::Claimant(claimant) => *claimant,
            _ => unreachable!("the claimants of a claim are in that state"),
        }
    }

    /// Handles what was kept, up to a message that claims another id: what is behind it is kept on.
    fn replay(&mut self, conn: Conn, mut claimant: Claimant, turn: &mut Turn) {
        loop {
            match &mut self.peer_mut(conn).state {
                State::Closed => return,
                State::Claimant(next) => {
                    next.kept = claimant.kept;
                    next.kept_bytes = claimant.kept_bytes;
                    next.taken = claimant.taken;
                    return;
                }
                _ => {
                    let Some(text) = claimant.kept.pop_front() else { return };
                    claimant.kept_bytes -= text.len();
                    self.obey(conn, &text, &claimant.taken, turn);
                }
            }
        }
    }

    // ---- Pairing ----

    fn connect(&mut self, conn: Conn, turn: &mut Turn) {
        match self.peer(conn).state {
            State::Offerer | State::Waiting(_) | State::Paired(_) => return,
            State::Handed(hold) if self.stands(hold) => return,
            State::Handed(_) => self.let_go(conn),
            State::Joined(_) => self.depart(conn, turn),
            _ => {}
        }
        let room = self.peer(conn).room;
        self.line_up(room, &[conn], Queue::push_back, turn);
        self.settle(room, turn);
    }

    /// Idle peers connect, in this order: each is handed the offer that stands, or waits where `push` puts it.
    fn line_up(&mut self, room: usize, who: &[Conn], push: fn(&mut Queue, Conn) -> i64, turn: &mut Turn) {
        if self.standing(room).is_some() && self.rooms[room].line.is_empty() {
            for &conn in who {
                self.hand(room, conn, turn);
            }
        } else {
            for &conn in who {
                let ticket = push(&mut self.rooms[room].line, conn);
                self.peer_mut(conn).state = State::Waiting(ticket);
            }
        }
    }

    /// Lets a room move on as far as it can, and sets its patience. To be called after whatever may have given
    /// it something to do.
    fn settle(&mut self, room: usize, turn: &mut Turn) {
        loop {
            match (self.rooms[room].offerer, self.standing(room)) {
                (None, _) => {
                    let Some(first) = self.rooms[room].line.pop_front() else {
                        break;
                    };
                    self.rooms[room].offerer = Some(first);
                    self.rooms[room].moved = true;
                    self.peer_mut(first).state = State::Offerer;
                    self.tell_with_ice(first, Reply::Ask.text(), turn);
                }
                (Some(_), Some(offer)) if offer.held == 0 => {
                    let Some(first) = self.rooms[room].line.pop_front() else {
                        break;
                    };
                    self.hand(room, first, turn);
                }
                (Some(_), _) => break,
            }
        }
        let Room { line, patience, moved, .. } = &mut self.rooms[room];
        let due = match *patience {
            _ if line.is_empty() => None,
            Some(due) if !*moved => Some(due),
            _ => Some(turn.now + PATIENCE),
        };
        *moved = false;
        if *patience != due {
            if let Some(due) = mem::replace(patience, due) {
                self.alarms.remove(&(due, Alarm::Patience(room)));
            }
            self.alarms.extend(due.map(|due| (due, Alarm::Patience(room))));
        }
    }

    fn lose_patience(&mut self, room: usize, turn: &mut Turn) {
        if self.standing(room).is_some() {
            let first = self.rooms[room].line.pop_front().expect("patience is set while somebody waits");
            self.hand(room, first, turn);
        } else {
            let offerer = self.rooms[room].offerer.take().expect("whoever waits, waits for an offerer");
            let ticket = self.rooms[room].line.push_back(offerer);
            self.peer_mut(offerer).state = State::Waiting(ticket);
        }
        self.settle(room, turn);
    }

    /// Hands the offer that stands to a peer.
    fn hand(&mut self, room: usize, to: Conn, turn: &mut Turn) {
        let owner = self.rooms[room].offerer.expect("a standing offer has an owner");
        self.rooms[room].moved = true;
        let offering = self.peer_mut(owner).offering.as_mut().expect("a standing offer is in an offering");
        let ticket = offering.holders.push_back(to);
        let offer = offering.offer.as_mut().expect("the offer stands");
        offer.held += 1;
        offer.handed = true;
        let (hold, text) = (Hold { owner, offer: offer.number, ticket }, offer.text.clone());
        self.tell_with_ice(to, text, turn);
        self.peer_mut(to).state = State::Handed(hold);
    }

    /// A peer that was handed an offer holds it no more, and is idle. The room may have to settle.
    fn let_go(&mut self, conn: Conn) {
        let peer = self.peer_mut(conn);
        let State::Handed(hold) = mem::replace(&mut peer.state, State::Idle) else {
            unreachable!("only a peer in this state holds an offer");
        };
        let owner = self.peer_mut(hold.owner);
        let offering = owner.offering.as_mut().expect("an owner of holders has an offering");
        offering.holders.remove(hold.ticket);
        if let Some(offer) = &mut offering.offer
            && offer.number == hold.offer
        {
            offer.held -= 1;
        }
        owner.tidy();
    }

    fn offer(&mut self, conn: Conn, target: Option<Conn>, sdp: &str, turn: &mut Turn) -> Result<(), Refusal> {
        let peer = self.peer(conn);
        let to = match (target, &peer.state) {
            (Some(target), _) => target,
            (None, State::Paired(partner)) => *partner,
            (None, State::Joined(_)) => {
                return refused(Code::BadMessage, "a joined peer names its target_id");
            }
            (None, _) => return self.put_up(conn, sdp, turn),
        };
        let id = self.id(conn);
        turn.forward(to, [Reply::Offer { sdp, target: id, id: Some(id) }.text()])?;
        // What the target held of the sender's is overtaken by this.
        if matches!(self.peer(to).state, State::Handed(hold) if hold.owner == conn) {
            self.let_go(to);
            self.settle(self.peer(to).room, turn);
        }
        Ok(())
    }

    /// From now on the offer stands, if nobody else's turn it is.
    fn put_up(&mut self, conn: Conn, sdp: &str, turn: &mut Turn) -> Result<(), Refusal> {
        let room = self.peer(conn).room;
        let offerer = self.rooms[room].offerer;
        if offerer.is_some_and(|offerer| offerer != conn) {
            let peer = self.peer_mut(conn);
            peer.refused = true;
            peer.drop_candidates();
            return refused(Code::NotOfferer, "another peer is the offerer; connect and wait to be asked");
        }
        let text = Reply::Offer { sdp, target: self.id(conn), id: None }.text();
        if !turn.out.may_keep(text.capacity()) {
            let stands = self.standing(room).is_some();
            let peer = self.peer_mut(conn);
            peer.refused = true;
            if !stands {
                peer.drop_candidates();
            }
            return Err(NO_MEMORY);
        }
        self.kept += text.capacity();
        if let State::Handed(_) = self.peer(conn).state {
            self.let_go(conn);
        }
        self.offers += 1;
        let offer = Offer { number: self.offers, text, held: 0, handed: false };
        let peer = self.peer_mut(conn);
        peer.state = State::Offerer;
        peer.refused = false;
        if peer.offering.get_or_insert_default().offer.replace(offer).is_some() {
            peer.drop_candidates();
        }
        self.rooms[room].offerer = Some(conn);
        self.rooms[room].moved = true;
        self.settle(room, turn);
        Ok(())
    }

    fn answer(
        &mut self,
        conn: Conn,
        target: Option<Conn>,
        sdp: &str,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        let peer = self.peer(conn);
        let room = peer.room;
        let to = match (target, &peer.state) {
            (Some(target), _) => target,
            (None, State::Handed(hold)) => hold.owner,
            (None, State::Paired(partner)) => *partner,
            (None, _) => {
                return refused(Code::BadMessage, "target_id is missing, and there is no offer to answer");
            }
        };
        let stands = self.rooms[room].offerer == Some(to) && self.standing(room).is_some();
        let pairs = match peer.state {
            State::Handed(hold) if hold.owner == to && !self.stands(hold) => {
                let refusal = Refusal { code: Code::OfferTaken, message: "that offer was taken or replaced" };
                self.refuse(conn, refusal, target.map(|to| self.id(to).to_owned()).as_deref(), turn);
                self.connect(conn, turn);
                return Ok(());
            }
            State::Idle | State::Handed(_) => stands,
            _ => false,
        };
        turn.forward(to, [Reply::Answer { sdp, id: self.id(conn) }.text()])?;
        if pairs {
            self.pair(to, conn, turn);
        }
        Ok(())
    }

    /// The offer of `a` is answered by `b`.
    fn pair(&mut self, a: Conn, b: Conn, turn: &mut Turn) {
        if let State::Handed(_) = self.peer(b).state {
            self.let_go(b);
        }
        let room = self.peer(a).room;
        self.rooms[room].offerer = None;
        self.rooms[room].moved = true;
        let offering = self.peer_mut(a).offering.as_mut().expect("the offer stands");
        offering.offer = None;
        let candidates = mem::take(&mut offering.candidates);
        if !candidates.is_empty() {
            turn.tell(b, &Reply::Candidate { candidate: &candidates, id: self.id(a) });
        }
        for (conn, partner) in [(a, b), (b, a)] {
            let peer = self.peer_mut(conn);
            peer.state = State::Paired(partner);
            peer.drop_candidates();
        }
        self.settle(room, turn);
    }

    fn candidates(
        &mut self,
        conn: Conn,
        target: Option<&str>,
        candidates: &Candidates,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        let peer = self.peer(conn);
        let to = match (self.target(conn, target), &peer.state) {
            (Ok(Some(target)), _) => target,
            // Trickled to the name of a peer that is still to come.
            (Err(_), State::Offerer) if !peer.was_handed() && target != peer.id.as_deref() => {
                return self.store(conn, candidates, turn);
            }
            (Err(refusal), _) => return Err(refusal),
            (Ok(None), State::Paired(partner)) => *partner,
            (Ok(None), State::Handed(hold)) if self.stands(*hold) => hold.owner,
            (Ok(None), State::Handed(_)) => return Ok(()),
            (Ok(None), State::Joined(_)) => {
                return refused(Code::BadMessage, "a joined peer names its target_id");
            }
            (Ok(None), _) if peer.refused => return Ok(()),
            (Ok(None), _) => return self.store(conn, candidates, turn),
        };
        let id = self.id(conn);
        let text = |candidate| Reply::Candidate { candidate, id }.text();
        match candidates {
            Candidates::One(candidate) => turn.forward(to, [text(candidate)]),
            Candidates::Many(_) => turn.forward(to, candidates.iter().map(text).collect::<Vec<_>>()),
        }
    }

    /// Keeps candidates for the offer of their peer, standing or to come.
    fn store(&mut self, conn: Conn, candidates: &Candidates, turn: &mut Turn) -> Result<(), Refusal> {
        let (count, bytes) = self.peer(conn).stored();
        let (count, bytes) =
            (count + candidates.len(), bytes + candidates.iter().map(str::len).sum::<usize>());
        if count > CANDIDATES_MAX || bytes > STORED_BYTES_MAX {
            return refused(Code::TooMany, "at most 64 candidates, and 64 KiB of them, are stored");
        }
        // A string that grows may come to have twice the room it needs.
        if !turn.out.may_keep(2 * bytes) {
            return Err(NO_MEMORY);
        }
        let offering = self.peer_mut(conn).offering.get_or_insert_default();
        let room = offering.candidates.capacity();
        for candidate in candidates.iter() {
            if !offering.candidates.is_empty() {
                offering.candidates.push('|');
            }
            offering.candidates.push_str(candidate);
        }
        offering.candidate_count = count;
        let grown = offering.candidates.capacity() - room;
        self.kept += grown;
        Ok(())
    }

    // ---- The mesh ----

    fn join(&mut self, conn: Conn, turn: &mut Turn) -> Result<(), Refusal> {
        let Peer { room, ref state, .. } = *self.peer(conn);
        if !matches!(state, State::Joined(_)) {
            if self.rooms[room].mesh.len() >= self.mesh_peers_max {
                return refused(Code::RoomFull, "as many peers have joined this room as may");
            }
            self.depart(conn, turn);
            for other in self.rooms[room].mesh.iter() {
                turn.tell(other, &Reply::PeerJoined { id: self.id(conn) });
            }
            let ticket = self.rooms[room].mesh.push_back(conn);
            self.peer_mut(conn).state = State::Joined(ticket);
        }
        let others = self.rooms[room].mesh.iter().filter(|other| *other != conn);
        let peers = others.map(|other| self.id(other)).collect();
        let text = Reply::Joined { id: self.id(conn), peers }.text();
        self.tell_with_ice(conn, text, turn);
        Ok(())
    }

    // ---- Leaving ----

    /// Takes a peer out of whatever flow it is in, and tells those concerned. It is idle then; a connection that
    /// is in no flow stays as it is.
    fn depart(&mut self, conn: Conn, turn: &mut Turn) {
        let peer = self.peer_mut(conn);
        let room = peer.room;
        match peer.state {
            State::Nameless | State::Claimant(_) | State::Closed => return,
            State::Idle => {}
            State::Offerer => self.rooms[room].offerer = None,
            State::Waiting(ticket) => {
                let room = &mut self.rooms[room];
                room.line.remove(ticket);
                // If this empties the line, and holders of its offers fill it again, that is another line.
                room.moved |= room.line.is_empty();
            }
            State::Handed(_) => self.let_go(conn),
            State::Paired(partner) => {
                self.peer_mut(partner).state = State::Idle;
                turn.tell(partner, &Reply::PeerLeft { id: self.id(conn) });
            }
            State::Joined(ticket) => {
                self.rooms[room].mesh.remove(ticket);
                for other in self.rooms[room].mesh.iter() {
                    turn.tell(other, &Reply::PeerLeft { id: self.id(conn) });
                }
            }
        }
        let peer = self.peer_mut(conn);
        peer.state = State::Idle;
        if let Some(offering) = peer.offering.take() {
            let mut holders: Vec<Conn> = offering.holders.iter().collect();
            for &holder in &holders {
                self.peer_mut(holder).state = State::Idle;
                turn.tell(holder, &Reply::PeerLeft { id: self.id(conn) });
            }
            // Before those in the line, in their own order.
            if self.rooms[room].line.is_empty() {
                self.line_up(room, &holders, Queue::push_back, turn);
            } else {
                holders.reverse();
                self.line_up(room, &holders, Queue::push_front, turn);
            }
        }
        self.settle(room, turn);
    }

    // ---- Looking things up ----

    fn find(&self, conn: Conn) -> Option<&Peer> {
        self.peers.get(conn.slot())?.as_ref().filter(|peer| peer.conn == conn)
    }

    fn find_mut(&mut self, conn: Conn) -> Option<&mut Peer> {
        self.peers.get_mut(conn.slot())?.as_mut().filter(|peer| peer.conn == conn)
    }

    /// A connection that another part of the hub refers to. Whatever refers to a connection is undone before
    /// the connection is forgotten; [`Hub::check`] says so.
    fn peer(&self, conn: Conn) -> &Peer {
        self.find(conn).expect("the hub refers only to connections that it knows")
    }

    fn peer_mut(&mut self, conn: Conn) -> &mut Peer {
        self.find_mut(conn).expect("the hub refers only to connections that it knows")
    }

    fn id(&self, conn: Conn) -> &str {
        self.peer(conn).id.as_deref().expect("a peer in a flow is registered")
    }

    /// Who has this id in the room of this connection.
    fn lookup(&self, conn: Conn, id: &str) -> Option<Conn> {
        self.rooms[self.peer(conn).room].ids.get(id).copied()
    }

    /// The peer that a message names, which may not be its sender.
    fn target(&self, conn: Conn, target: Option<&str>) -> Result<Option<Conn>, Refusal> {
        let Some(id) = target else { return Ok(None) };
        // Most name their partner, which is at hand.
        if let State::Paired(partner) = self.peer(conn).state
            && self.id(partner) == id
        {
            return Ok(Some(partner));
        }
        match self.lookup(conn, id) {
            Some(target) if target != conn => Ok(Some(target)),
            _ => refused(Code::UnknownPeer, "target_id names nobody else in this room"),
        }
    }

    /// The offer that stands in a room.
    fn standing(&self, room: usize) -> Option<&Offer> {
        self.peer(self.rooms[room].offerer?).offering.as_ref()?.offer.as_ref()
    }

    /// Whether the offer that somebody holds still stands.
    fn stands(&self, hold: Hold) -> bool {
        let offer = self.peer(hold.owner).offering.as_ref().and_then(|offering| offering.offer.as_ref());
        offer.is_some_and(|offer| offer.number == hold.offer)
    }

    /// Checks what must be true between any two inputs. For tests: it looks at everything.
    ///
    /// # Panics
    /// If it is not.
    pub fn check(&self) {
        let in_room = |key: usize| self.peers.iter().flatten().filter(move |peer| peer.room == key);
        let mut alarms = 0;
        assert_eq!(self.room_names.len(), self.rooms.len());
        for (key, room) in &self.rooms {
            assert_eq!(self.room_names[&room.name], key);
            assert!(room.members > 0, "a room goes with its last member");
            assert_eq!(room.members, in_room(key).count());
            assert_eq!(
                room.line.len(),
                in_room(key).filter(|p| matches!(p.state, State::Waiting(_))).count()
            );
            assert_eq!(room.mesh.len(), in_room(key).filter(|p| matches!(p.state, State::Joined(_))).count());
            assert!(room.mesh.len() <= self.mesh_peers_max);
            assert_eq!(room.claims.len(), in_room(key).filter(|p| p.probed).count());
            match (room.offerer, self.standing(key)) {
                (None, _) => assert!(room.line.is_empty(), "somebody waits and nobody was asked"),
                (_, Some(offer)) if offer.held == 0 => {
                    assert!(room.line.is_empty(), "an offer lies around")
                }
                (Some(_), _) => {}
            }
            assert_eq!(room.patience.is_some(), !room.line.is_empty());
            if let Some(due) = room.patience {
                assert!(self.alarms.contains(&(due, Alarm::Patience(key))));
                alarms += 1;
            }
            for (id, claim) in &room.claims {
                assert!(self.peer(room.ids[id]).probed);
                let claimants =
                    in_room(key).filter(|p| matches!(&p.state, State::Claimant(c) if c.id == *id));
                assert_eq!(claim.claimants.len(), claimants.count());
                assert!(self.alarms.contains(&(claim.until, Alarm::Probe(key, id.clone()))));
                alarms += 1;
            }
            assert!(!room.moved);
        }
        assert_eq!(self.alarms.len(), alarms);
        let mut registered = 0;
        for peer in self.peers.iter().flatten() {
            let room = &self.rooms[peer.room];
            if matches!(peer.state, State::Nameless | State::Claimant(_) | State::Closed) {
                assert!(peer.offering.is_none() && !peer.probed);
                assert!(peer.id.is_none() || matches!(peer.state, State::Closed));
            } else {
                registered += 1;
                assert_eq!(room.ids[peer.id.as_ref().expect("registered")], peer.conn);
            }
            assert_eq!(room.offerer == Some(peer.conn), matches!(peer.state, State::Offerer));
            match &peer.state {
                State::Nameless | State::Idle | State::Offerer | State::Closed => {}
                State::Claimant(c) => {
                    assert_eq!(room.claims[&c.id].claimants.0[&c.ticket], peer.conn)
                }
                State::Waiting(ticket) => assert_eq!(room.line.0[ticket], peer.conn),
                State::Joined(ticket) => assert_eq!(room.mesh.0[ticket], peer.conn),
                State::Paired(partner) => {
                    assert!(matches!(self.peer(*partner).state, State::Paired(back) if back == peer.conn));
                }
                State::Handed(hold) => {
                    let offering = self.peer(hold.owner).offering.as_ref().expect("an owner has an offering");
                    assert_eq!(offering.holders.0[&hold.ticket], peer.conn);
                }
            }
            let Some(offering) = &peer.offering else {
                continue;
            };
            let holds = |conn| match self.peer(conn).state {
                State::Handed(hold) if hold.owner == peer.conn => hold.offer,
                _ => panic!("a holder holds"),
            };
            let numbers: Vec<u64> = offering.holders.iter().map(holds).collect();
            if let Some(offer) = &offering.offer {
                assert!(matches!(peer.state, State::Offerer));
                assert_eq!(offer.held, numbers.iter().filter(|number| **number == offer.number).count());
                assert!(offer.handed || offer.held == 0);
            }
            assert!(offering.candidate_count <= CANDIDATES_MAX);
            assert!(offering.candidates.len() < STORED_BYTES_MAX + CANDIDATES_MAX);
            assert!(
                !matches!(peer.state, State::Paired(_) | State::Joined(_)) || offering.candidates.is_empty()
            );
        }
        assert_eq!(self.registered, registered);
        assert!(self.kept >= self.peers.iter().flatten().map(Peer::kept).sum());
        assert_eq!(self.rooms.iter().map(|(_, room)| room.ids.len()).sum::<usize>(), registered);
    }
}

impl Room {
    fn new(name: Rc<str>) -> Room {
        Room {
            name,
            members: 0,
            ids: HashMap::new(),
            claims: HashMap::new(),
            offerer: None,
            line: Queue::default(),
            mesh: Queue::default(),
            patience: None,
            moved: false,
        }
    }
}

impl Peer {
    fn new(conn: Conn, room: usize, claims: Option<&Claims>) -> Peer {
        Peer {
            conn,
            room,
            claims: claims.cloned().map(Box::new),
            id: None,
            state: State::Nameless,
            offering: None,
            refused: false,
            probed: false,
            bucket: Bucket::default(),
        }
    }

    /// Bytes of what it said that are kept.
    fn kept(&self) -> usize {
        let offering = self.offering.as_ref().map_or(0, |offering| {
            let offer = offering.offer.as_ref().map_or(0, |offer| offer.text.capacity());
            offer + offering.candidates.capacity()
        });
        match &self.state {
            State::Claimant(claimant) => claimant.first.len() + claimant.kept_bytes,
            _ => offering,
        }
    }

    /// Whether its token, where one is needed, is for this id, or for any.
    fn may_speak_as(&self, id: &str) -> bool {
        self.claims.as_ref().and_then(|claims| claims.id.as_deref()).is_none_or(|own| own == id)
    }

    /// Whether its token is for one id, which then is its own, whoever else may come.
    fn owns_its_id(&self) -> bool {
        self.claims.as_ref().is_some_and(|claims| claims.id.is_some())
    }

    /// Whether its standing offer was handed to anybody.
    fn was_handed(&self) -> bool {
        let offer = self.offering.as_ref().and_then(|offering| offering.offer.as_ref());
        offer.is_some_and(|offer| offer.handed)
    }

    /// How many candidates are stored, and their bytes without the separators.
    fn stored(&self) -> (usize, usize) {
        self.offering.as_ref().map_or((0, 0), |offering| {
            let separators = offering.candidate_count.saturating_sub(1);
            (offering.candidate_count, offering.candidates.len() - separators)
        })
    }

    fn drop_candidates(&mut self) {
        if let Some(offering) = &mut self.offering {
            offering.candidates = String::new();
            offering.candidate_count = 0;
            self.tidy();
        }
    }

    /// Most peers have nothing on offer, and shall not pay for it.
    fn tidy(&mut self) {
        self.offering = self.offering.take().filter(|offering| {
            offering.offer.is_some() || !offering.holders.is_empty() || !offering.candidates.is_empty()
        });
    }
}
