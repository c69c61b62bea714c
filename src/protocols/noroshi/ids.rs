//! Ids: registration, and conflicts between connections that use the same id.
//!
//! The holder of an id that another connection claims is probed. If it shows life, those who claim the id are told
//! `id_taken`; if it does not, or leaves, the first claimant gets the id. A connection whose token is for the id does not
//! wait: it replaces the holder. A claimant is not read while it waits, so that TCP holds back what it sends.

use std::hash::BuildHasher;
use std::mem;

use super::peer::{Claimant, Who};
use super::{NO_MEMORY, Noroshi, Slot};
use crate::config::{CLAIMANTS_MAX, ID_BYTES_MAX};
use crate::protocol::Close;
use crate::protocols::Context;
use crate::protocols::noroshi::message::{self, Body, Code, Refusal};

pub(super) const FOREIGN_ID: Refusal =
    Refusal { code: Code::IdMismatch, message: "this connection speaks as another id" };
pub(super) const ID_TAKEN: Refusal =
    Refusal { code: Code::IdTaken, message: "the id belongs to a peer that is here" };

/// What the id in a message means for the connection that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// The connection has this id.
    Own,
    /// The connection has no id, and this one is free.
    New,
    /// Another connection holds the id, but the token of this one is for it: the holder is replaced.
    TakesOver(Slot),
    /// Another connection holds the id, and has to be probed.
    Claims(Slot),
    /// Another connection holds the id, and keeps it.
    Taken,
    /// The connection has another id, or a token for another one.
    Foreign,
    /// The id was refused to this connection before, and the message does not claim it again.
    RefusedBefore,
}

impl Noroshi {
    /// Returns the peer that has this id in a room.
    pub(super) fn holder(&self, room: u32, id: &str) -> Option<Slot> {
        let has_it = |slot: &Slot| {
            let peer = self.peer(*slot);
            peer.room == room && peer.id() == Some(id)
        };
        self.ids.find(self.hasher.hash_one((room, id)), has_it).copied()
    }

    /// Decides what the id of a message means. Changes nothing.
    pub(super) fn identify(&self, slot: Slot, id: &str, body: &Body) -> Identity {
        let peer = self.peer(slot);
        let refused = match &peer.who {
            Who::Registered(own) if **own == *id => return Identity::Own,
            Who::Registered(_) | Who::Claimant(_) => return Identity::Foreign,
            Who::Nameless => None,
            Who::Refused(refused) => Some(&***refused),
        };
        if !peer.may_speak_as(id) {
            return Identity::Foreign;
        }
        if refused == Some(id) && !matches!(body, Body::Connect | Body::Join) {
            return Identity::RefusedBefore;
        }
        let Some(holder) = self.holder(peer.room, id) else {
            return Identity::New;
        };
        if peer.owns_its_id() {
            return Identity::TakesOver(holder);
        }
        let claimants = self.peer(holder).claimants.as_ref().map_or(0, |claimants| claimants.len());
        if self.peer(holder).owns_its_id() || claimants >= CLAIMANTS_MAX {
            return Identity::Taken;
        }
        Identity::Claims(holder)
    }

    /// Gives an id that is free to a peer that has none.
    pub(super) fn register(&mut self, slot: Slot, id: &str, turn: &mut Context) {
        let peer = self.peer_mut(slot);
        peer.who = Who::Registered(id.into());
        let room = peer.room;
        turn.registered(self.peers.conn(slot), &self.rooms[room as usize].name, id);
        let Noroshi { ids, peers, hasher, .. } = self;
        ids.insert_unique(hasher.hash_one((room, id)), slot, |slot| {
            let peer = &peers[*slot];
            hasher.hash_one((peer.room, peer.id().expect("who is registered has an id")))
        });
    }

    /// Takes the id, or the claim of one, from a peer that has departed.
    pub(super) fn retire(&mut self, slot: Slot, turn: &mut Context) {
        let peer = self.peer_mut(slot);
        let room = peer.room;
        match mem::replace(&mut peer.who, Who::Nameless) {
            Who::Nameless | Who::Refused(_) => {}
            Who::Claimant(claimant) => {
                let Noroshi { peers, links, .. } = self;
                if let Some(claimants) = &mut peers[claimant.holder].claimants {
                    links.remove(claimants, slot);
                }
            }
            Who::Registered(id) => {
                let entry = self.ids.find_entry(self.hasher.hash_one((room, &*id)), |it| *it == slot);
                entry.expect("who is registered is in the table").remove();
                let claimants = self.end_claim(slot, turn);
                self.grant_to_first(&id, claimants, turn);
            }
        }
    }

    /// Ends the probe of a holder that has shown no life. Without a claimant that is still there, nothing changes.
    pub(super) fn silent(&mut self, holder: Slot, turn: &mut Context) {
        if self.peer(holder).claimants.as_ref().is_some_and(|claimants| claimants.is_empty()) {
            self.peer_mut(holder).claimants = None;
            return;
        }
        self.close(holder, Close::Replaced, turn);
    }

    /// Makes a peer wait for the probe of the holder of the id that it claims.
    ///
    /// # Errors
    /// Its message cannot be stored for that long.
    pub(super) fn claim(
        &mut self,
        slot: Slot,
        holder: Slot,
        target: Option<&str>,
        text: &str,
        turn: &mut Context,
    ) -> Result<(), Refusal> {
        let bytes = size_of::<Claimant>() + ID_BYTES_MAX + text.len();
        let memory = turn.reserve(bytes).ok_or(NO_MEMORY)?;
        if self.peer(holder).claimants.is_none() {
            turn.probe(self.peers.conn(holder));
        }
        let Noroshi { peers, links, .. } = self;
        links.push_back(peers[holder].claimants.get_or_insert_default(), slot);
        let claimant = Claimant { holder, target: target.map(Box::from), first: text.into(), memory };
        self.peer_mut(slot).who = Who::Claimant(Box::new(claimant));
        turn.pause_reading(self.peers.conn(slot));
        Ok(())
    }

    /// Replaces the holder of an id by the peer whose token is for that id.
    pub(super) fn take_over(&mut self, slot: Slot, holder: Slot, id: &str, turn: &mut Context) {
        let claimants = self.end_claim(holder, turn);
        self.reject_claimants(id, claimants, turn);
        self.close(holder, Close::Replaced, turn);
        self.register(slot, id, turn);
    }

    /// Ends the probe of a holder that shows life: the claimants do not get the id.
    pub(super) fn alive(&mut self, slot: Slot, turn: &mut Context) {
        let claimants = self.end_claim(slot, turn);
        if let Some(id) = self.peer(slot).id().map(str::to_owned) {
            self.reject_claimants(&id, claimants, turn);
        }
    }

    /// Ends the claim to a holder's id, if there is one, and the probe. Returns the claimants, oldest first; the caller
    /// must grant them the id or reject them at once.
    fn end_claim(&mut self, holder: Slot, turn: &mut Context) -> Vec<(Slot, Box<Claimant>)> {
        let Some(claimants) = self.peer_mut(holder).claimants.take() else { return Vec::new() };
        turn.cancel_probe(self.peers.conn(holder));
        let slots: Vec<Slot> = self.links.iter(&claimants).collect();
        let mut ended = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Who::Claimant(claimant) = mem::replace(&mut self.peer_mut(slot).who, Who::Nameless) {
                turn.resume_reading(self.peers.conn(slot));
                ended.push((slot, claimant));
            }
        }
        ended
    }

    /// Gives the id of a holder that has left to the first claimant, and handles the message that claimed it.
    fn grant_to_first(&mut self, id: &str, claimants: Vec<(Slot, Box<Claimant>)>, turn: &mut Context) {
        let mut claimants = claimants.into_iter();
        let Some((first, claimant)) = claimants.next() else { return };
        self.register(first, id, turn);
        self.reject_claimants(id, claimants.collect(), turn);
        if let Ok(request) = message::parse(&claimant.first) {
            self.serve_first(first, &request, claimant.first.len(), turn);
        }
    }

    fn reject_claimants(&mut self, id: &str, claimants: Vec<(Slot, Box<Claimant>)>, turn: &mut Context) {
        for (slot, claimant) in claimants {
            self.refuse_id(slot, id, claimant.target.as_deref(), turn);
        }
    }

    /// Tells a peer without an id that this one is taken, and remembers that it was refused.
    pub(super) fn refuse_id(&mut self, slot: Slot, id: &str, target: Option<&str>, turn: &mut Context) {
        self.peer_mut(slot).who = Who::Refused(Box::new(id.into()));
        self.refuse(slot, ID_TAKEN, target, turn);
    }
}
