//! Who a peer is: ids, and what becomes of those who claim the id of another.
//!
//! The holder of an id that somebody claims is probed. If it shows life, those who claim it are told that it is taken;
//! if it does not, or goes, the first of them has it. Whoever has a token for an id does not wait.

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::mem;

use super::peer::{Claimant, Who};
use super::{Hub, NO_MEMORY, Slot};
use crate::config::{KEPT_BYTES_MAX, KEPT_MESSAGES_MAX};
use crate::gate::Turn;
use crate::message::{self, Code, Refusal};
use crate::protocol::Close;

const FOREIGN_ID: Refusal =
    Refusal { code: Code::IdMismatch, message: "this connection speaks as another id" };
const ID_TAKEN: Refusal = Refusal { code: Code::IdTaken, message: "the id belongs to a peer that is here" };

impl Hub {
    /// Who has this id in a room.
    pub(super) fn holder(&self, room: u32, id: &str) -> Option<Slot> {
        let has_it = |slot: &Slot| {
            let peer = self.peer(*slot);
            peer.room == room && peer.id() == Some(id)
        };
        self.ids.find(self.hasher.hash_one((room, id)), has_it).copied()
    }

    /// Who has the id that somebody without one gives itself, and may.
    pub(super) fn rival(&self, slot: Slot, id: &str) -> Option<Slot> {
        let peer = self.peer(slot);
        let may_have_it = matches!(peer.who, Who::Nameless) && peer.may_speak_as(id);
        if may_have_it { self.holder(peer.room, id) } else { None }
    }

    /// Somebody says its first message under an id that another holds. If the id is free after this, those who claimed
    /// it and have lost it; they are still to be told.
    ///
    /// # Errors
    /// Why it does not have the id; `None`, if it waits for the probe to show whether it will.
    pub(super) fn contest(
        &mut self,
        slot: Slot,
        holder: Slot,
        text: &str,
        turn: &mut Turn,
    ) -> Result<Vec<Slot>, Option<Refusal>> {
        if self.peer(slot).owns_its_id() {
            let losers = self.end_claim(holder);
            self.close(holder, Close::Replaced, turn);
            return Ok(losers);
        }
        if self.peer(holder).owns_its_id() {
            return Err(Some(ID_TAKEN));
        }
        if !turn.keep(text.len()) {
            return Err(Some(NO_MEMORY));
        }
        self.claim(slot, holder, text, turn);
        Err(None)
    }

    /// Whoever has no id yet is registered under the one that it gives itself; the others keep theirs.
    pub(super) fn speak_as(&mut self, slot: Slot, id: &str, turn: &mut Turn) -> Result<(), Refusal> {
        let peer = self.peer(slot);
        match &peer.who {
            Who::Registered(own) if **own == *id => Ok(()),
            Who::Nameless if peer.may_speak_as(id) => {
                self.register(slot, id, turn);
                Ok(())
            }
            _ => Err(FOREIGN_ID),
        }
    }

    fn register(&mut self, slot: Slot, id: &str, turn: &mut Turn) {
        let peer = self.peer_mut(slot);
        peer.who = Who::Registered(id.into());
        let room = peer.room;
        turn.registered(self.peers.conn(slot), &self.rooms[room as usize].name, id);
        let Hub { ids, peers, hasher, .. } = self;
        ids.insert_unique(hasher.hash_one((room, id)), slot, |slot| {
            let peer = &peers[*slot];
            hasher.hash_one((peer.room, peer.id().expect("who is registered has an id")))
        });
    }

    /// Takes the id, or the claim of one, from a peer that has departed.
    pub(super) fn retire(&mut self, slot: Slot, turn: &mut Turn) {
        let peer = self.peer_mut(slot);
        let room = peer.room;
        match mem::replace(&mut peer.who, Who::Nameless) {
            Who::Nameless => {}
            Who::Claimant(claimant) => {
                let Hub { peers, links, .. } = self;
                let order = peers[claimant.holder].claimants.as_mut().expect("it is claimed");
                links.remove(order, slot);
            }
            Who::Registered(id) => {
                let entry = self.ids.find_entry(self.hasher.hash_one((room, &*id)), |it| *it == slot);
                entry.expect("who is registered is in the table").remove();
                let claimants = self.end_claim(slot);
                self.award(&id, &claimants, turn);
            }
        }
    }

    /// A peer waits for the probe of whoever holds the id that it claims.
    fn claim(&mut self, slot: Slot, holder: Slot, text: &str, turn: &mut Turn) {
        if self.peer(holder).claimants.is_none() {
            turn.probe(self.peers.conn(holder));
        }
        let claimant = Claimant {
            id: self.id(holder).into(),
            holder,
            first: text.into(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            taken: BTreeSet::new(),
        };
        let Hub { peers, links, .. } = self;
        links.push_back(peers[holder].claimants.get_or_insert_default(), slot);
        self.peer_mut(slot).who = Who::Claimant(Box::new(claimant));
    }

    /// What a claimant says meanwhile is kept, as much as fits.
    pub(super) fn keep(&mut self, slot: Slot, text: &str, turn: &mut Turn) {
        let Who::Claimant(claimant) = &mut self.peers[slot].who else { return };
        let is_full =
            claimant.kept_bytes + text.len() > KEPT_BYTES_MAX || claimant.kept.len() >= KEPT_MESSAGES_MAX;
        if is_full || !turn.keep(text.len()) {
            let verdict = turn.offend(self.peers.conn(slot));
            self.drop_one(slot, verdict, turn);
        } else {
            claimant.kept_bytes += text.len();
            claimant.kept.push_back(text.into());
        }
    }

    /// A sign of life ends the probe in favour of the holder.
    pub(super) fn alive(&mut self, slot: Slot, turn: &mut Turn) {
        let losers = self.end_claim(slot);
        self.reject_all(losers, turn);
    }

    /// Takes down the claim of a holder's id, if there is one. Those who claimed it, first come first.
    fn end_claim(&mut self, holder: Slot) -> Vec<Slot> {
        let claimants = self.peer_mut(holder).claimants.take();
        claimants.map_or(Vec::new(), |claimants| self.links.iter(&claimants).collect())
    }

    /// The holder is gone: the first claimant has the id, the others have not.
    fn award(&mut self, id: &str, claimants: &[Slot], turn: &mut Turn) {
        let Some((first, others)) = claimants.split_first() else { return };
        if let Some(claimant) = self.end_waiting(*first) {
            self.register(*first, id, turn);
            self.obey(*first, &claimant.first, &claimant.taken, turn);
            self.replay(*first, claimant, turn);
        }
        self.reject_all(others.to_vec(), turn);
    }

    pub(super) fn reject_all(&mut self, claimants: Vec<Slot>, turn: &mut Turn) {
        for slot in claimants {
            let Some(mut claimant) = self.end_waiting(slot) else { continue };
            let request = message::parse(&claimant.first).expect("a claim is well-formed");
            self.messages[request.body.kind() as usize] += 1;
            self.refuse(slot, ID_TAKEN, request.target.as_deref(), turn);
            claimant.taken.insert(mem::take(&mut claimant.id));
            self.replay(slot, claimant, turn);
        }
    }

    fn end_waiting(&mut self, slot: Slot) -> Option<Claimant> {
        let who = &mut self.peer_mut(slot).who;
        match mem::replace(who, Who::Nameless) {
            Who::Claimant(claimant) => Some(*claimant),
            other => {
                *who = other;
                None
            }
        }
    }

    /// Handles what was kept, up to a message that claims another id: what is behind it is kept on.
    fn replay(&mut self, slot: Slot, mut claimant: Claimant, turn: &mut Turn) {
        loop {
            // It may have said too much, and be gone.
            let Some(peer) = self.peers.get_mut(slot) else { return };
            match &mut peer.who {
                Who::Claimant(next) => {
                    next.kept = claimant.kept;
                    next.kept_bytes = claimant.kept_bytes;
                    next.taken = claimant.taken;
                    return;
                }
                Who::Nameless | Who::Registered(_) => {
                    let Some(text) = claimant.kept.pop_front() else { return };
                    claimant.kept_bytes -= text.len();
                    self.obey(slot, &text, &claimant.taken, turn);
                }
            }
        }
    }
}
