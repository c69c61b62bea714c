//! Noroshi's own protocol: who is paired with whom, who waits, who hears what.
//!
//! A [`Protocol`], and as pure as all of them. Nothing a peer sends is an error of the hub's: the answer to a wrong
//! message is a message.
//!
//! The rules are in `pairing` and `mesh`, which know nothing of how a peer comes to its id: that is in `ids`. A peer
//! is in a slot, by which all others refer to it; whatever refers to a peer is undone before its slot is free, and
//! [`Noroshi::check`] says so. Whatever a peer does costs O(log n) in a room of n, but for telling those who must be told.
//! Tables of hashes are never iterated, so that the same inputs have the same effects.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use hashbrown::HashTable;
use slab::Slab;

use crate::config::Config;
use crate::metrics::Counts;
use crate::protocol::{Close, Conn, Input, Member, Target};
use crate::protocols::conn_table::{ConnTable, Slot};
use crate::protocols::ice::IceServers;
use crate::protocols::list::ListNodes;
use crate::protocols::{Protocol, Turn};
use crate::rate_limit::{Verdict, credits_for_bytes};
use crate::timestamp::Timestamp;
use crate::token::Claims;
use message::{Body, Code, Kind, Refusal, Request};

mod check;
mod handshakes;
mod ids;
mod mesh;
pub mod message;
mod pairing;
mod peer;
mod price;
mod room;
mod tell;

use handshakes::{Handshakes, Outcome};
use ids::{FOREIGN_ID, Identity};
use peer::{Flow, Peer, Who};
use room::Room;

/// All rooms and peers.
pub struct Noroshi {
    mesh_peers_max: usize,
    ice: IceServers,
    /// By slot.
    peers: ConnTable<Peer>,
    /// Who is before and after each peer in the order in which it is.
    links: ListNodes,
    rooms: Slab<Room>,
    /// Those who have an id, by room and id, and the rooms by name. Both stand in the record that a table leads to, so
    /// that an entry is four bytes. Peers choose what is hashed here.
    ids: HashTable<Slot>,
    names: HashTable<u32>,
    hasher: RandomState,
    /// When which room has not moved for too long. A room knows its entry, and takes it out when it is void.
    alarms: BTreeSet<(Timestamp, u32)>,
    /// Well-formed messages since the start, by [`Kind`].
    messages: [u64; Kind::ALL.len()],
    /// Refused messages, by [`Code`].
    errors: [u64; Code::ALL.len()],
    handshakes: Handshakes,
}

const NO_MEMORY: Refusal =
    Refusal { code: Code::TooMany, message: "the server's memory is used up; try again later" };

fn refused<T>(code: Code, message: &'static str) -> Result<T, Refusal> {
    Err(Refusal { code, message })
}

impl Protocol for Noroshi {
    /// # Panics
    /// If a connection connects in a slot that another still has.
    fn handle(&mut self, input: Input<'_>, turn: &mut Turn) {
        match input {
            Input::Connected(conn, target, claims) => return self.enter(conn, &target.room, claims),
            Input::Time => return self.lose_patience(turn),
            _ => {}
        }
        let Some(slot) = input.conn().and_then(|conn| self.peers.find(conn)) else { return };
        match input {
            Input::Text(_, text) => self.text(slot, text, turn),
            // What is not UTF-8 is no JSON, and neither is nothing.
            Input::Binary(_, bytes) => self.text(slot, str::from_utf8(bytes).unwrap_or_default(), turn),
            Input::Dropped { tell, .. } => self.drop_one(slot, Verdict::Drop { notify: tell }, turn),
            Input::Alive(_) => self.alive(slot, turn),
            Input::Silent(_) => self.silent(slot, turn),
            Input::Disconnected(_) => self.exit(slot, turn),
            Input::Connected(..) | Input::Time => {}
        }
    }

    fn wake_at(&self) -> Option<Duration> {
        self.alarms.first().map(|(at, _)| at.get())
    }

    fn knows_room(&self, target: &Target) -> bool {
        self.named(&target.room).is_some()
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let peer = self.peer(self.peers.find(conn)?);
        let room = &self.rooms[peer.room as usize].name;
        Some(Member { room, id: peer.id().map(Cow::from), state: peer.state() })
    }

    /// From now on passwords for TURN are made from the secret that is in here.
    fn renew(&mut self, config: &Config) {
        self.ice = IceServers::new(config);
    }

    fn counts(&self, now: Duration) -> Counts {
        Counts {
            peers: self.ids.len(),
            rooms: self.rooms.len(),
            messages: Kind::ALL.map(Kind::name).into_iter().zip(self.messages).collect(),
            errors: Code::ALL.map(Code::name).into_iter().zip(self.errors).collect(),
            handshakes: Some(self.handshakes.counts(now)),
        }
    }

    fn check(&self) {
        self.check_all();
    }
}

impl Noroshi {
    /// A hub without rooms.
    pub fn new(config: &Config) -> Noroshi {
        Noroshi {
            mesh_peers_max: config.mesh_peers_max,
            ice: IceServers::new(config),
            peers: ConnTable::NEW,
            links: ListNodes::default(),
            rooms: Slab::new(),
            ids: HashTable::new(),
            names: HashTable::new(),
            hasher: RandomState::new(),
            alarms: BTreeSet::new(),
            messages: Default::default(),
            errors: Default::default(),
            handshakes: Handshakes::default(),
        }
    }

    // ---- Coming and going ----

    fn enter(&mut self, conn: Conn, name: &str, claims: Option<&Claims>) {
        let room = self.named(name).unwrap_or_else(|| {
            let room = self.rooms.insert(Room::new(name)) as u32;
            let Noroshi { names, rooms, hasher, .. } = self;
            names.insert_unique(hasher.hash_one(name), room, |room| {
                hasher.hash_one(&*rooms[*room as usize].name)
            });
            room
        });
        self.rooms[room as usize].members += 1;
        let slot = self.peers.insert(conn, Peer::new(room, claims));
        self.links.ensure_slot(slot);
    }

    /// The room of this name.
    fn named(&self, name: &str) -> Option<u32> {
        let has_it = |room: &u32| *self.rooms[*room as usize].name == *name;
        self.names.find(self.hasher.hash_one(name), has_it).copied()
    }

    /// A peer is gone: all is undone that refers to it, and it is forgotten.
    fn exit(&mut self, slot: Slot, turn: &mut Turn) {
        self.depart(slot, turn);
        let room = self.peer(slot).room;
        let conn = self.peers.conn(slot);
        turn.left(conn, self.member(conn));
        self.retire(slot, turn);
        self.peers.remove(slot);
        self.rooms[room as usize].members -= 1;
        if self.rooms[room as usize].members == 0 {
            let hash = self.hasher.hash_one(&*self.rooms[room as usize].name);
            let entry = self.names.find_entry(hash, |it| *it == room);
            entry.expect("a room has a name").remove();
            self.rooms.remove(room as usize);
        }
    }

    fn close(&mut self, slot: Slot, why: Close, turn: &mut Turn) {
        turn.close(self.peers.conn(slot), why);
        self.exit(slot, turn);
    }

    /// Takes a peer out of whatever flow it is in, and tells those concerned. It is idle then.
    fn depart(&mut self, slot: Slot, turn: &mut Turn) {
        self.handshakes.leave(slot, turn.now);
        let room = self.peer(slot).room;
        match self.peer(slot).flow {
            Flow::Idle => {}
            Flow::Offerer => self.rooms[room as usize].offerer = None,
            Flow::Waiting => self.leave_line(slot),
            Flow::Handed(_) => self.let_go(slot),
            Flow::Paired(partner) => {
                self.peer_mut(partner).flow = Flow::Idle;
                self.tell_left(slot, partner, turn);
            }
            Flow::Joined => self.leave_mesh(slot, turn),
        }
        self.peer_mut(slot).flow = Flow::Idle;
        self.withdraw(slot, turn);
        self.settle(room, turn);
    }

    // ---- A message ----

    /// Handles a message. Everything is checked and charged before anything changes.
    fn text(&mut self, slot: Slot, text: &str, turn: &mut Turn) {
        if let Who::Claimant(_) = self.peer(slot).who {
            debug_assert!(false, "a claimant is not read");
            return;
        }
        let request = match message::parse(text) {
            Ok(request) => request,
            Err((refusal, target)) => return self.refuse(slot, refusal, target.as_deref(), turn),
        };
        let Request { id, target, body } = &request;
        let target = target.as_deref();
        let identity = self.identify(slot, id, body);
        let credits = self.price(slot, identity, target, body, text.len());
        let verdict = turn.charge(self.peers.conn(slot), credits, text.len());
        if verdict != Verdict::Pass {
            return self.drop_one(slot, verdict, turn);
        }
        self.messages[body.kind() as usize] += 1;
        match identity {
            Identity::Own => {}
            Identity::New => self.register(slot, id, turn),
            Identity::TakesOver(holder) => self.take_over(slot, holder, id, turn),
            Identity::Claims(holder) => {
                if let Err(refusal) = self.claim(slot, holder, target, text, turn) {
                    self.refuse(slot, refusal, target, turn);
                }
                return;
            }
            Identity::Taken => return self.refuse_id(slot, id, target, turn),
            Identity::Foreign => return self.refuse(slot, FOREIGN_ID, target, turn),
            Identity::RefusedBefore => {
                self.errors[Code::IdTaken as usize] += 1;
                return;
            }
        }
        self.serve(slot, target, body, turn);
    }

    /// Handles the message with which a peer has claimed its id, which it has now.
    fn serve_first(&mut self, slot: Slot, request: &Request, bytes: usize, turn: &mut Turn) {
        let target = request.target.as_deref();
        let credits = credits_for_bytes(bytes) + self.consequences(slot, target, &request.body);
        let verdict = turn.charge(self.peers.conn(slot), credits, bytes);
        if verdict != Verdict::Pass {
            return self.drop_one(slot, verdict, turn);
        }
        self.serve(slot, target, &request.body, turn);
    }

    /// Drops a message that is over the rate.
    fn drop_one(&mut self, slot: Slot, verdict: Verdict, turn: &mut Turn) {
        let refusal = Refusal { code: Code::RateLimited, message: "too many messages; this one was dropped" };
        match verdict {
            Verdict::Pass => {}
            Verdict::Drop { notify: true } => self.refuse(slot, refusal, None, turn),
            Verdict::Drop { notify: false } => self.errors[refusal.code as usize] += 1,
            Verdict::Close => self.close(slot, Close::RateLimited, turn),
        }
    }

    /// Does what a registered peer asks for, or tells it why not.
    fn serve(&mut self, slot: Slot, target: Option<&str>, body: &Body, turn: &mut Turn) {
        if let Err(refusal) = self.try_serve(slot, target, body, turn) {
            self.refuse(slot, refusal, target, turn);
        }
    }

    fn try_serve(
        &mut self,
        slot: Slot,
        target: Option<&str>,
        body: &Body,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        match body {
            Body::Connect => self.connect(slot, turn),
            Body::Offer(sdp) => {
                let target = self.target(slot, target);
                let offered = target.and_then(|target| self.offer(slot, target, sdp, turn));
                return offered.inspect_err(|_| self.handshakes.count(Outcome::Refused, 1));
            }
            Body::Answer(sdp) => return self.answer(slot, self.target(slot, target)?, sdp, turn),
            Body::Candidates(candidates) => return self.candidates(slot, target, candidates, turn),
            Body::Join => return self.join(slot, turn),
            Body::Leave => self.depart(slot, turn),
        }
        Ok(())
    }

    // ---- Looking things up ----

    fn peer(&self, slot: Slot) -> &Peer {
        &self.peers[slot]
    }

    fn peer_mut(&mut self, slot: Slot) -> &mut Peer {
        &mut self.peers[slot]
    }

    fn id(&self, slot: Slot) -> &str {
        self.peer(slot).id().expect("a peer in a flow is registered")
    }

    /// The peer that a message names, which may not be its sender.
    fn target(&self, slot: Slot, target: Option<&str>) -> Result<Option<Slot>, Refusal> {
        let Some(id) = target else { return Ok(None) };
        // Most name their partner, who is at hand.
        if let Flow::Paired(partner) = self.peer(slot).flow
            && self.id(partner) == id
        {
            return Ok(Some(partner));
        }
        match self.holder(self.peer(slot).room, id) {
            Some(target) if target != slot => Ok(Some(target)),
            _ => refused(Code::UnknownPeer, "target_id names nobody else in this room"),
        }
    }
}
