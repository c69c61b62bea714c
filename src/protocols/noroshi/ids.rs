//! Ids: registration, and conflicts between connections that use the same id.
//!
//! When a connection claims the id of another one, the holder of the id is probed. If the holder shows life,
//! all claimants are sent `id_taken`. If it does not, or leaves, the first claimant gets the id. A connection
//! whose token is for the id replaces the holder at once. A claimant is not read while it waits, so that TCP
//! holds back what it sends.

use std::hash::BuildHasher;
use std::mem;

use super::peer::{Claimant, Registration};
use super::{NO_MEMORY, Noroshi, Slot};
use crate::limits::{CLAIMANTS_MAX, ID_BYTES_MAX};
use crate::protocol::{CloseCause, Context};
use crate::protocols::noroshi::message::{self, Body, ClientMessage, Code, ErrorReply};

pub(super) const ID_MISMATCH: ErrorReply =
    ErrorReply { code: Code::IdMismatch, message: "id: expected the id of this connection or its token" };
pub(super) const ID_TAKEN: ErrorReply =
    ErrorReply { code: Code::IdTaken, message: "id: expected an unused one; a connected peer has this id" };

/// The result of checking the id in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdCheck {
    /// The connection has this id.
    Own,
    /// The connection has no id, and this one is free.
    Free,
    /// Another connection holds the id, but the token of this one is for it: the holder is replaced.
    TakeOver(Slot),
    /// Another connection holds the id, and has to be probed.
    Claim(Slot),
    /// Another connection holds the id, and keeps it.
    Taken,
    /// The connection has another id, or a token for another one.
    Mismatch,
    /// A claim of this id was rejected before, and the message does not claim it again.
    RejectedBefore,
}

impl Noroshi {
    /// Returns the peer that has this id in a room.
    pub(super) fn find_peer(&self, room: u32, id: &str) -> Option<Slot> {
        let has_id = |slot: &Slot| {
            let peer = self.peer(*slot);
            peer.room == room && peer.id() == Some(id)
        };
        self.peers_by_id.find(self.hasher.hash_one((room, id)), has_id).copied()
    }

    /// Checks whether a connection may use the id in its message. Changes nothing.
    pub(super) fn check_id(&self, slot: Slot, id: &str, body: &Body) -> IdCheck {
        let peer = self.peer(slot);
        let rejected_id = match &peer.registration {
            Registration::Registered { id: own_id, .. } if **own_id == *id => return IdCheck::Own,
            Registration::Registered { .. } | Registration::Claimant(_) => return IdCheck::Mismatch,
            Registration::Unregistered => None,
            Registration::IdRejected(rejected_id) => Some(&**rejected_id),
        };
        if !peer.may_use_id(id) {
            return IdCheck::Mismatch;
        }
        if rejected_id == Some(id) && !matches!(body, Body::Connect | Body::Join) {
            return IdCheck::RejectedBefore;
        }
        let Some(holder) = self.find_peer(peer.room, id) else {
            return IdCheck::Free;
        };
        if peer.has_token_for_id() {
            return IdCheck::TakeOver(holder);
        }
        let claimant_count = self.peer(holder).claimants.as_ref().map_or(0, |claimants| claimants.len());
        if self.peer(holder).has_token_for_id() || claimant_count >= CLAIMANTS_MAX {
            return IdCheck::Taken;
        }
        IdCheck::Claim(holder)
    }

    /// Gives a free id to a connection that has none.
    pub(super) fn register(&mut self, slot: Slot, id: &str, context: &mut Context) {
        let peer = self.peer_mut(slot);
        peer.registration = Registration::Registered { id: id.into(), is_offer_rejected: false };
        let room = peer.room;
        context.registered(self.peers.conn(slot), &self.rooms[room].name, id);
        let Noroshi { peers_by_id, peers, hasher, .. } = self;
        peers_by_id.insert_unique(hasher.hash_one((room, id)), slot, |slot| {
            let peer = &peers[*slot];
            let id = peer.id().expect("peers in the table have an id");
            hasher.hash_one((peer.room, id))
        });
    }

    /// Releases the id of a peer, or its claim of one.
    ///
    /// The peer must have left its flow. The id passes to its first claimant.
    pub(super) fn release_id(&mut self, slot: Slot, context: &mut Context) {
        let peer = self.peer_mut(slot);
        let room = peer.room;
        match mem::replace(&mut peer.registration, Registration::Unregistered) {
            Registration::Unregistered | Registration::IdRejected(_) => {}
            Registration::Claimant(claimant) => {
                let Noroshi { peers, list_nodes, .. } = self;
                if let Some(claimants) = &mut peers[claimant.holder].claimants {
                    list_nodes.remove(claimants, slot);
                }
            }
            Registration::Registered { id, .. } => {
                let hash = self.hasher.hash_one((room, &*id));
                let entry = self.peers_by_id.find_entry(hash, |entry| *entry == slot);
                entry.expect("a registered peer is in the table").remove();
                let claimants = self.take_claimants(slot, context);
                self.grant_to_first(&id, claimants, context);
            }
        }
    }

    /// Handles a failed probe: closes the holder if claimants are left.
    pub(super) fn on_probe_failed(&mut self, holder: Slot, context: &mut Context) {
        let all_claimants_left =
            self.peer(holder).claimants.as_ref().is_some_and(|claimants| claimants.is_empty());
        if all_claimants_left {
            self.peer_mut(holder).claimants = None;
            return;
        }
        self.close(holder, CloseCause::Replaced, context);
    }

    /// Adds a claimant of an id, and probes its holder.
    ///
    /// # Errors
    /// [`NO_MEMORY`]: `--max-memory` does not allow to store the message `text` until the probe ends.
    pub(super) fn claim_id(
        &mut self,
        slot: Slot,
        holder: Slot,
        target: Option<&str>,
        text: &str,
        context: &mut Context,
    ) -> Result<(), ErrorReply> {
        let bytes = size_of::<Claimant>() + ID_BYTES_MAX + text.len();
        let memory = context.reserve(bytes).ok_or(NO_MEMORY)?;
        if self.peer(holder).claimants.is_none() {
            context.probe(self.peers.conn(holder));
        }
        let Noroshi { peers, list_nodes, .. } = self;
        let claimants = peers[holder].claimants.get_or_insert_default();
        list_nodes.push_back(claimants, slot);
        let claimant = Claimant { holder, target: target.map(Box::from), message: text.into(), memory };
        self.peer_mut(slot).registration = Registration::Claimant(Box::new(claimant));
        context.pause_reading(self.peers.conn(slot));
        Ok(())
    }

    /// Replaces the holder of an id by another connection.
    ///
    /// The token of that connection is for this id.
    pub(super) fn take_over_id(&mut self, slot: Slot, holder: Slot, id: &str, context: &mut Context) {
        let claimants = self.take_claimants(holder, context);
        self.reject_claimants(id, claimants, context);
        self.close(holder, CloseCause::Replaced, context);
        self.register(slot, id, context);
    }

    /// Handles a liveness signal of a probed holder: rejects all claimants.
    pub(super) fn on_probe_answered(&mut self, slot: Slot, context: &mut Context) {
        let claimants = self.take_claimants(slot, context);
        if let Some(id) = self.peer(slot).id().map(str::to_owned) {
            self.reject_claimants(&id, claimants, context);
        }
    }

    /// Ends the probe of a holder and returns its claimants, oldest first.
    ///
    /// The caller must grant them the id or reject them at once.
    fn take_claimants(&mut self, holder: Slot, context: &mut Context) -> Vec<(Slot, Box<Claimant>)> {
        let Some(claimants) = self.peer_mut(holder).claimants.take() else {
            return Vec::new();
        };
        context.cancel_probe(self.peers.conn(holder));
        let slots: Vec<Slot> = self.list_nodes.iter(&claimants).collect();
        let mut taken = Vec::with_capacity(slots.len());
        for slot in slots {
            let registration = &mut self.peer_mut(slot).registration;
            if let Registration::Claimant(claimant) = mem::replace(registration, Registration::Unregistered) {
                context.resume_reading(self.peers.conn(slot));
                taken.push((slot, claimant));
            }
        }
        taken
    }

    /// Gives a released id to its first claimant and rejects the others.
    ///
    /// The message that claimed the id is processed then.
    fn grant_to_first(&mut self, id: &str, claimants: Vec<(Slot, Box<Claimant>)>, context: &mut Context) {
        let mut claimants = claimants.into_iter();
        let Some((first, claimant)) = claimants.next() else {
            return;
        };
        self.register(first, id, context);
        self.reject_claimants(id, claimants.collect(), context);
        if let Ok(ClientMessage::Signaling(message)) = message::parse(&claimant.message) {
            self.process_claiming_message(first, &message, claimant.message.len(), context);
        }
    }

    fn reject_claimants(&mut self, id: &str, claimants: Vec<(Slot, Box<Claimant>)>, context: &mut Context) {
        for (slot, claimant) in claimants {
            self.reject_id(slot, id, claimant.target.as_deref(), context);
        }
    }

    /// Sends `id_taken` to an unregistered connection and remembers the id.
    pub(super) fn reject_id(&mut self, slot: Slot, id: &str, target: Option<&str>, context: &mut Context) {
        self.peer_mut(slot).registration = Registration::IdRejected(id.into());
        self.send_error(slot, ID_TAKEN, target, context);
    }
}
