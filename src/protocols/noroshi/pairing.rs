//! The pairing flow: `connect`, offers, answers, candidates and the queue of a room.
//!
//! The first peer that connects becomes the offerer of the room and is asked for an offer. Its offer is the
//! current offer of the room until an answer to it arrives, it is replaced, or the offerer leaves. Each peer
//! that connects later is sent the current offer, or waits in the queue. The peer whose answer arrives first
//! is paired with the offerer; then the first peer in the queue, or the next one that connects, becomes the offerer.
//!
//! Several peers can hold the same offer. An offer that a peer holds is outdated once it was answered or
//! replaced.
//!
//! This is the flow of the original program; section "Differences from the original program" of
//! `src/protocols/noroshi/PROTOCOL.md` lists the differences.

use std::mem;

use super::handshakes::Outcome;
use super::peer::{DeliveredOffer, Flow, Offer};
use super::{NO_MEMORY, Noroshi, Room, Slot, error};
use crate::limits::{CANDIDATES_MAX, OFFER_HOLDERS_MAX, ROOM_TIMEOUT, STORED_BYTES_MAX};
use crate::protocol::Context;
use crate::protocols::list::{List, ListNodes};
use crate::protocols::noroshi::message::{Candidates, Code, ErrorReply, ServerMessage};

const TARGET_REQUIRED: ErrorReply = ErrorReply {
    code: Code::BadMessage,
    message: "target_id: expected an id, because this peer has joined the mesh",
};

impl Noroshi {
    // ---- Queue ----

    /// Handles `connect`: delivers the current offer, or queues the peer.
    pub(super) fn handle_connect(&mut self, slot: Slot, context: &mut Context) {
        match self.peer(slot).flow {
            Flow::Offerer | Flow::Queued | Flow::Paired(_) => return,
            Flow::HoldingOffer(offer) if self.is_current(offer) => return,
            Flow::HoldingOffer(_) => self.release_offer(slot),
            Flow::Joined => self.leave_flow(slot, context),
            Flow::Idle => {}
        }
        let room = self.peer(slot).room;
        self.deliver_or_enqueue(room, &[slot], ListNodes::push_back, context);
        self.advance(room, context);
    }

    /// Connects idle peers in this order.
    ///
    /// Each one is sent the current offer, or is inserted into the queue of the room with `push`. A peer whose outbound queue is
    /// congested waits in the queue of the room, so that it does not receive every new offer; [`Noroshi::advance`] sends it an
    /// offer that no other peer holds.
    fn deliver_or_enqueue(
        &mut self,
        room: u32,
        slots: &[Slot],
        push: fn(&mut ListNodes, &mut List, Slot),
        context: &mut Context,
    ) {
        for &slot in slots {
            let is_congested = context.is_congested(self.peers.conn(slot));
            if !is_congested && self.deliverable_offer(room).is_some() {
                self.deliver_offer(room, slot, context);
            } else {
                push(&mut self.list_nodes, &mut self.rooms[room].queue, slot);
                self.peer_mut(slot).flow = Flow::Queued;
            }
        }
    }

    /// Returns the offer that the next peer gets without waiting.
    ///
    /// `None`: the peer has to wait, because there is no current offer, the queue is not empty, or
    /// [`OFFER_HOLDERS_MAX`] peers hold the offer.
    pub(super) fn deliverable_offer(&self, room: u32) -> Option<&Offer> {
        if !self.rooms[room].queue.is_empty() {
            return None;
        }
        self.current_offer(room).filter(|offer| offer.current_holders < OFFER_HOLDERS_MAX)
    }

    pub(super) fn leave_queue(&mut self, slot: Slot) {
        let index = self.peer(slot).room;
        let room = &mut self.rooms[index];
        self.list_nodes.remove(&mut room.queue, slot);
        // The leaver may still have holders of an older offer. `retract_offer` puts them into this queue, so that
        // `update_deadline` would not see that it was empty.
        room.has_progressed |= room.queue.is_empty();
    }

    /// Serves the queue of a room and updates its deadline.
    ///
    /// While peers are queued, the first one becomes the offerer if the room has none, and is sent the
    /// current offer if no other peer holds it. Call this after every change of the queue, the offerer or the
    /// current offer.
    pub(super) fn advance(&mut self, room: u32, context: &mut Context) {
        loop {
            let offerer = self.rooms[room].offerer;
            let is_offer_available = self.current_offer(room).is_some_and(|offer| offer.current_holders == 0);
            if offerer.is_some() && !is_offer_available {
                break;
            }
            let Some(first) = self.list_nodes.pop_front(&mut self.rooms[room].queue) else {
                break;
            };
            if offerer.is_some() {
                self.deliver_offer(room, first, context);
            } else {
                self.rooms[room].offerer = Some(first);
                self.rooms[room].has_progressed = true;
                self.peer_mut(first).flow = Flow::Offerer;
                self.send_with_ice_servers(first, ServerMessage::RequestOffer.to_json(), context);
            }
        }
        self.update_deadline(room, context);
    }

    /// Sets the deadline to [`ROOM_TIMEOUT`] after the last progress.
    ///
    /// A room with an empty queue has no deadline.
    fn update_deadline(&mut self, room: u32, context: &Context) {
        let Room { queue, deadline, has_progressed, .. } = &mut self.rooms[room];
        let new_deadline = if queue.is_empty() {
            None
        } else if deadline.is_some() && !*has_progressed {
            *deadline
        } else {
            Some((context.now + ROOM_TIMEOUT).into())
        };
        *has_progressed = false;
        if *deadline == new_deadline {
            return;
        }
        if let Some(old_deadline) = mem::replace(deadline, new_deadline) {
            self.timers.remove(&(old_deadline, room));
        }
        if let Some(new_deadline) = new_deadline {
            self.timers.insert((new_deadline, room));
        }
    }

    /// Advances the room whose deadline expired first, if any has.
    ///
    /// An unanswered offer is delivered to the next peer as well. An offerer that has not sent an offer moves
    /// to the end of the queue.
    pub(super) fn on_room_timeout(&mut self, context: &mut Context) {
        let Some(&(deadline, room)) = self.timers.first() else {
            return;
        };
        if deadline.get() > context.now {
            return;
        }
        self.timers.remove(&(deadline, room));
        if self.current_offer(room).is_some() {
            let first = self.list_nodes.pop_front(&mut self.rooms[room].queue);
            let first = first.expect("a room with a deadline has a queue");
            self.deliver_offer(room, first, context);
        } else if let Some(offerer) = self.rooms[room].offerer.take() {
            self.list_nodes.push_back(&mut self.rooms[room].queue, offerer);
            self.peer_mut(offerer).flow = Flow::Queued;
        }
        self.advance(room, context);
    }

    // ---- Offers ----

    fn current_offer(&self, room: u32) -> Option<&Offer> {
        let offerer = self.rooms[room].offerer?;
        self.peer(offerer).current_offer()
    }

    /// Checks whether a delivered offer can still be answered.
    pub(super) fn is_current(&self, delivered: DeliveredOffer) -> bool {
        let current = self.peer(delivered.offerer).current_offer();
        current.is_some_and(|offer| offer.number == delivered.number)
    }

    /// Sends the current offer of the room to a peer.
    fn deliver_offer(&mut self, room: u32, to: Slot, context: &mut Context) {
        let Noroshi { rooms, peers, list_nodes, .. } = self;
        let room = &mut rooms[room];
        room.has_progressed = true;
        let offerer = room.offerer.expect("a room with a current offer has an offerer");
        let state = peers[offerer].offer_state.as_mut().expect("a current offer is in an offer state");
        let offer = state.current.as_mut().expect("the room has a current offer");
        offer.current_holders += 1;
        offer.is_delivered = true;
        let delivered = DeliveredOffer { offerer, number: offer.number };
        let text = offer.text.clone();
        list_nodes.push_back(&mut state.all_holders, to);
        self.handshakes.on_offer(offerer, to, context.now);
        self.send_with_ice_servers(to, text, context);
        self.peer_mut(to).flow = Flow::HoldingOffer(delivered);
    }

    /// Makes a peer that holds an offer idle.
    ///
    /// The caller must call [`Noroshi::advance`], because the offer may be free for the next peer.
    pub(super) fn release_offer(&mut self, slot: Slot) {
        let Flow::HoldingOffer(delivered) = self.peer(slot).flow else {
            return;
        };
        self.peer_mut(slot).flow = Flow::Idle;
        let Noroshi { peers, list_nodes, .. } = self;
        let offerer = &mut peers[delivered.offerer];
        let Some(state) = &mut offerer.offer_state else {
            return;
        };
        list_nodes.remove(&mut state.all_holders, slot);
        if let Some(offer) = &mut state.current
            && offer.number == delivered.number
        {
            offer.current_holders -= 1;
        }
        offerer.free_unused_offer_state();
    }

    /// Removes the offers of a leaving peer. All holders of them connect again, ahead of the queue.
    pub(super) fn retract_offer(&mut self, slot: Slot, context: &mut Context) {
        let Some(state) = self.peer_mut(slot).offer_state.take() else {
            return;
        };
        let mut holders: Vec<Slot> = self.list_nodes.iter(&state.all_holders).collect();
        for &holder in &holders {
            self.peer_mut(holder).flow = Flow::Idle;
            self.send_peer_left(slot, holder, context);
        }
        let room = self.peer(slot).room;
        if self.rooms[room].queue.is_empty() {
            self.deliver_or_enqueue(room, &holders, ListNodes::push_back, context);
        } else {
            holders.reverse();
            self.deliver_or_enqueue(room, &holders, ListNodes::push_front, context);
        }
    }

    /// Handles `offer`: forwards it to a peer or publishes it.
    ///
    /// # Errors
    /// See [`Noroshi::publish_offer`] and [`Noroshi::forward`]; a joined peer must name a target.
    pub(super) fn handle_offer(
        &mut self,
        slot: Slot,
        target: Option<Slot>,
        sdp: &str,
        context: &mut Context,
    ) -> Result<(), ErrorReply> {
        let to = match (target, self.peer(slot).flow) {
            (Some(target), _) => target,
            (None, Flow::Paired(partner)) => partner,
            (None, Flow::Joined) => return Err(TARGET_REQUIRED),
            (None, _) => return self.publish_offer(slot, sdp, context),
        };
        let id = self.id(slot);
        let text = ServerMessage::Offer { sdp, target: id, id: Some(id) }.to_json();
        self.forward(to, [text], context)?;
        self.handshakes.on_offer(slot, to, context.now);
        // The forwarded offer replaces the one that the target holds from the same sender.
        if matches!(self.peer(to).flow, Flow::HoldingOffer(offer) if offer.offerer == slot) {
            self.release_offer(to);
            self.advance(self.peer(to).room, context);
        }
        Ok(())
    }

    /// Publishes the offer to the room unless another peer is the offerer.
    ///
    /// A newer offer of the same peer replaces the current one and discards its candidates.
    ///
    /// # Errors
    /// [`Code::NotOfferer`], or [`NO_MEMORY`]. Candidates that follow a rejected offer are discarded.
    fn publish_offer(&mut self, slot: Slot, sdp: &str, context: &mut Context) -> Result<(), ErrorReply> {
        let room = self.peer(slot).room;
        if self.rooms[room].offerer.is_some_and(|offerer| offerer != slot) {
            let peer = self.peer_mut(slot);
            peer.set_offer_rejected(true);
            peer.discard_candidates();
            return error(
                Code::NotOfferer,
                "another peer is the offerer; send connect and wait for its offer",
            );
        }
        let text = ServerMessage::Offer { sdp, target: self.id(slot), id: None }.to_json();
        let Some(memory) = context.reserve(text.capacity()) else {
            let peer = self.peer_mut(slot);
            peer.set_offer_rejected(true);
            if peer.current_offer().is_none() {
                peer.discard_candidates();
            }
            return Err(NO_MEMORY);
        };
        self.release_offer(slot);
        let peer = self.peer_mut(slot);
        peer.flow = Flow::Offerer;
        peer.set_offer_rejected(false);
        let state = peer.offer_state.get_or_insert_default();
        state.last_number = state.last_number.wrapping_add(1);
        let number = state.last_number;
        let offer = Offer { number, text, current_holders: 0, is_delivered: false, memory };
        let replaced = state.current.replace(offer);
        if replaced.is_some() {
            peer.discard_candidates();
        }
        self.rooms[room].offerer = Some(slot);
        self.rooms[room].has_progressed = true;
        self.advance(room, context);
        Ok(())
    }

    // ---- Answers ----

    /// Handles `answer`: forwards it, and pairs if the offer is current.
    ///
    /// The sender of an answer to an outdated offer gets an error and connects again.
    ///
    /// # Errors
    /// [`Code::BadMessage`]: the message has no target and the peer holds no offer. See also
    /// [`Noroshi::forward`].
    pub(super) fn handle_answer(
        &mut self,
        slot: Slot,
        target: Option<Slot>,
        sdp: &str,
        context: &mut Context,
    ) -> Result<(), ErrorReply> {
        let flow = self.peer(slot).flow;
        let to = match (target, flow) {
            (Some(target), _) => target,
            (None, Flow::HoldingOffer(offer)) => offer.offerer,
            (None, Flow::Paired(partner)) => partner,
            (None, _) => {
                let message =
                    "target_id: expected an id, because this peer holds no offer and has no partner";
                return error(Code::BadMessage, message);
            }
        };
        let answers_current_offer = match flow {
            Flow::HoldingOffer(offer) if offer.offerer == to && !self.is_current(offer) => {
                self.handshakes.on_outcome(to, slot, Outcome::Rejected, context.now);
                self.reject_outdated_answer(slot, target, context);
                return Ok(());
            }
            Flow::Idle | Flow::HoldingOffer(_) => self.peer(to).current_offer().is_some(),
            _ => false,
        };
        let text = ServerMessage::Answer { sdp, id: self.id(slot) }.to_json();
        let forwarded = self.forward(to, [text], context);
        let outcome = if forwarded.is_ok() { Outcome::Answered } else { Outcome::Rejected };
        self.handshakes.on_outcome(to, slot, outcome, context.now);
        forwarded?;
        if answers_current_offer {
            self.pair(to, slot, context);
        }
        Ok(())
    }

    /// Sends `offer_taken` and connects the peer again.
    fn reject_outdated_answer(&mut self, slot: Slot, target: Option<Slot>, context: &mut Context) {
        let error =
            ErrorReply { code: Code::OfferTaken, message: "the offer was already answered or replaced" };
        let target_id = target.map(|target| self.id(target).to_owned());
        self.send_error(slot, error, target_id.as_deref(), context);
        self.handle_connect(slot, context);
    }

    /// Pairs two peers.
    ///
    /// The answerer is sent the stored candidates of the offerer.
    fn pair(&mut self, offerer: Slot, answerer: Slot, context: &mut Context) {
        self.release_offer(answerer);
        let room = self.peer(offerer).room;
        self.rooms[room].offerer = None;
        self.rooms[room].has_progressed = true;
        let state =
            self.peer_mut(offerer).offer_state.as_mut().expect("a current offer is in an offer state");
        state.current = None;
        let candidates = mem::take(&mut state.candidates);
        state.candidates_memory = None;
        if !candidates.is_empty() {
            let message = ServerMessage::Candidate { candidate: &candidates, id: self.id(offerer) };
            self.send_message(answerer, &message, context);
        }
        for (slot, partner) in [(offerer, answerer), (answerer, offerer)] {
            let peer = self.peer_mut(slot);
            peer.flow = Flow::Paired(partner);
            peer.discard_candidates();
        }
        self.advance(room, context);
    }

    // ---- Candidates ----

    /// Handles `candidateAdd`: forwards, stores or discards the candidates.
    ///
    /// # Errors
    /// The target is unknown, the receiver's queue is full, the candidates exceed what may be stored, or a target is required.
    pub(super) fn handle_candidates(
        &mut self,
        slot: Slot,
        target: Option<&str>,
        candidates: &Candidates,
        context: &mut Context,
    ) -> Result<(), ErrorReply> {
        let peer = self.peer(slot);
        let is_offer_delivered = peer.current_offer().is_some_and(|offer| offer.is_delivered);
        let to = match (self.resolve_target(slot, target), peer.flow) {
            (Ok(Some(target)), _) => target,
            // The target may connect later. Once the offer was delivered, an unknown target is an error.
            (Err(_), Flow::Offerer) if !is_offer_delivered && target != peer.id() => {
                return self.store_candidates(slot, candidates, context);
            }
            (Err(error), _) => return Err(error),
            (Ok(None), Flow::Paired(partner)) => partner,
            (Ok(None), Flow::HoldingOffer(offer)) if self.is_current(offer) => offer.offerer,
            (Ok(None), Flow::HoldingOffer(_)) => return Ok(()),
            (Ok(None), Flow::Joined) => return Err(TARGET_REQUIRED),
            (Ok(None), _) if peer.is_offer_rejected() => return Ok(()),
            (Ok(None), _) => return self.store_candidates(slot, candidates, context),
        };
        let id = self.id(slot);
        let to_json = |candidate| ServerMessage::Candidate { candidate, id }.to_json();
        match candidates {
            Candidates::One(candidate) => self.forward(to, [to_json(candidate)], context),
            Candidates::Many(_) => {
                let texts: Vec<String> = candidates.iter().map(to_json).collect();
                self.forward(to, texts, context)
            }
        }
    }

    /// Stores candidates for the current or next offer of their sender.
    ///
    /// # Errors
    /// [`Code::TooMany`]: [`CANDIDATES_MAX`], [`STORED_BYTES_MAX`] or `--max-memory` is exceeded. Nothing is
    /// stored then.
    fn store_candidates(
        &mut self,
        slot: Slot,
        candidates: &Candidates,
        context: &mut Context,
    ) -> Result<(), ErrorReply> {
        let (stored_count, stored_bytes) = self.peer(slot).stored_candidates();
        let new_count = candidates.len();
        let new_bytes: usize = candidates.iter().map(str::len).sum();
        if stored_count + new_count > CANDIDATES_MAX || stored_bytes + new_bytes > STORED_BYTES_MAX {
            return error(Code::TooMany, "stored candidates: expected at most 64 with 64 KiB in total");
        }
        // The capacity of a growing string is at most twice its length. Each candidate needs one byte for a
        // separator.
        let Some(memory) = context.reserve(2 * (new_bytes + new_count)) else {
            return Err(NO_MEMORY);
        };
        let state = self.peer_mut(slot).offer_state.get_or_insert_default();
        match &mut state.candidates_memory {
            Some(reservation) => reservation.absorb(memory),
            None => state.candidates_memory = Some(memory),
        }
        for candidate in candidates.iter() {
            if !state.candidates.is_empty() {
                state.candidates.push('|');
            }
            state.candidates.push_str(candidate);
        }
        state.candidate_count = stored_count + new_count;
        Ok(())
    }
}
