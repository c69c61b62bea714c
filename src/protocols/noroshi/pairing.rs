//! Pairing, the flow of the article that it all began with (in the README, "For those who know the article"): the first
//! who connects is asked for an offer, the offer stands until somebody answers it, whoever comes meanwhile is handed it or
//! waits in the line.

use std::mem;

use super::handshakes::Outcome;
use super::peer::{Flow, Hold, Offer};
use super::{NO_MEMORY, Noroshi, Room, Slot, refused};
use crate::config::{CANDIDATES_MAX, OFFER_HOLDERS_MAX, ROOM_TIMEOUT, STORED_BYTES_MAX};
use crate::protocols::Turn;
use crate::protocols::list::{List, ListNodes};
use crate::protocols::noroshi::message::{Candidates, Code, Refusal, Reply};

const NAME_IT: Refusal = Refusal { code: Code::BadMessage, message: "a joined peer names its target_id" };

impl Noroshi {
    // ---- The line ----

    pub(super) fn connect(&mut self, slot: Slot, turn: &mut Turn) {
        match self.peer(slot).flow {
            Flow::Offerer | Flow::Waiting | Flow::Paired(_) => return,
            Flow::Handed(hold) if self.stands(hold) => return,
            Flow::Handed(_) => self.let_go(slot),
            Flow::Joined => self.depart(slot, turn),
            Flow::Idle => {}
        }
        let room = self.peer(slot).room;
        self.line_up(room, &[slot], ListNodes::push_back, turn);
        self.settle(room, turn);
    }

    /// Idle peers connect, in this order: each is handed the offer that stands, or waits where `push` puts it.
    fn line_up(
        &mut self,
        room: u32,
        who: &[Slot],
        push: fn(&mut ListNodes, &mut List, Slot),
        turn: &mut Turn,
    ) {
        for &slot in who {
            if self.offer_to_next(room).is_some() {
                self.hand(room, slot, turn);
            } else {
                push(&mut self.links, &mut self.rooms[room as usize].line, slot);
                self.peer_mut(slot).flow = Flow::Waiting;
            }
        }
    }

    /// Returns the offer that the next peer that connects is handed, if it does not have to wait.
    pub(super) fn offer_to_next(&self, room: u32) -> Option<&Offer> {
        let is_anybody_waiting = !self.rooms[room as usize].line.is_empty();
        self.standing(room).filter(|offer| !is_anybody_waiting && offer.held < OFFER_HOLDERS_MAX)
    }

    pub(super) fn leave_line(&mut self, slot: Slot) {
        let room = self.peer(slot).room as usize;
        let room = &mut self.rooms[room];
        self.links.remove(&mut room.line, slot);
        // If this empties the line, and holders of its offers fill it again, that is another line.
        room.moved |= room.line.is_empty();
    }

    /// Lets a room move on as far as it can, and sets its patience. To be called after whatever may have given
    /// it something to do.
    pub(super) fn settle(&mut self, room: u32, turn: &mut Turn) {
        loop {
            let offerer = self.rooms[room as usize].offerer;
            let is_idle = offerer.is_none() || self.standing(room).is_some_and(|offer| offer.held == 0);
            let Some(first) = self.rooms[room as usize].line.first().filter(|_| is_idle) else { break };
            self.links.remove(&mut self.rooms[room as usize].line, first);
            if offerer.is_some() {
                self.hand(room, first, turn);
            } else {
                self.rooms[room as usize].offerer = Some(first);
                self.rooms[room as usize].moved = true;
                self.peer_mut(first).flow = Flow::Offerer;
                self.tell_with_ice(first, Reply::Ask.text(), turn);
            }
        }
        let Room { line, patience, moved, .. } = &mut self.rooms[room as usize];
        let due = match *patience {
            _ if line.is_empty() => None,
            Some(due) if !*moved => Some(due),
            _ => Some((turn.now + ROOM_TIMEOUT).into()),
        };
        *moved = false;
        if *patience != due {
            if let Some(due) = mem::replace(patience, due) {
                self.alarms.remove(&(due, room));
            }
            self.alarms.extend(due.map(|due| (due, room)));
        }
    }

    /// The room that has not moved for longest moves on, if its time has come.
    pub(super) fn lose_patience(&mut self, turn: &mut Turn) {
        let first = self.alarms.first().filter(|(due, _)| due.get() <= turn.now).copied();
        let Some((due, room)) = first else { return };
        self.alarms.remove(&(due, room));
        if self.standing(room).is_some() {
            let first = self.links.pop_front(&mut self.rooms[room as usize].line);
            self.hand(room, first.expect("patience is set while somebody waits"), turn);
        } else if let Some(offerer) = self.rooms[room as usize].offerer.take() {
            self.links.push_back(&mut self.rooms[room as usize].line, offerer);
            self.peer_mut(offerer).flow = Flow::Waiting;
        }
        self.settle(room, turn);
    }

    // ---- Offers ----

    /// The offer that stands in a room.
    fn standing(&self, room: u32) -> Option<&Offer> {
        self.peer(self.rooms[room as usize].offerer?).offer()
    }

    /// Whether the offer that somebody holds still stands.
    pub(super) fn stands(&self, hold: Hold) -> bool {
        self.peer(hold.owner).offer().is_some_and(|offer| offer.number == hold.offer)
    }

    /// Hands the offer that stands to a peer.
    fn hand(&mut self, room: u32, to: Slot, turn: &mut Turn) {
        let Noroshi { rooms, peers, links, .. } = self;
        let room = &mut rooms[room as usize];
        room.moved = true;
        let owner = room.offerer.expect("a standing offer has an owner");
        let offering = peers[owner].offering.as_mut().expect("a standing offer is in an offering");
        let offer = offering.offer.as_mut().expect("the offer stands");
        offer.held += 1;
        offer.handed = true;
        let (hold, text) = (Hold { owner, offer: offer.number }, offer.text.clone());
        links.push_back(&mut offering.holders, to);
        self.handshakes.begin(owner, to, turn.now);
        self.tell_with_ice(to, text, turn);
        self.peer_mut(to).flow = Flow::Handed(hold);
    }

    /// A peer that was handed an offer holds it no more, and is idle. The room may have to settle.
    pub(super) fn let_go(&mut self, slot: Slot) {
        let Flow::Handed(hold) = mem::replace(&mut self.peer_mut(slot).flow, Flow::Idle) else { return };
        let Noroshi { peers, links, .. } = self;
        let owner = &mut peers[hold.owner];
        let Some(offering) = &mut owner.offering else { return };
        links.remove(&mut offering.holders, slot);
        if let Some(offer) = &mut offering.offer
            && offer.number == hold.offer
        {
            offer.held -= 1;
        }
        owner.tidy();
    }

    /// What a peer that departs had on offer is gone; those who held it connect afresh, before those in the line.
    pub(super) fn withdraw(&mut self, slot: Slot, turn: &mut Turn) {
        let Some(offering) = self.peer_mut(slot).offering.take() else { return };
        let mut holders: Vec<Slot> = self.links.iter(&offering.holders).collect();
        for &holder in &holders {
            self.peer_mut(holder).flow = Flow::Idle;
            self.tell_left(slot, holder, turn);
        }
        let room = self.peer(slot).room;
        if self.rooms[room as usize].line.is_empty() {
            self.line_up(room, &holders, ListNodes::push_back, turn);
        } else {
            holders.reverse();
            self.line_up(room, &holders, ListNodes::push_front, turn);
        }
    }

    pub(super) fn offer(
        &mut self,
        slot: Slot,
        target: Option<Slot>,
        sdp: &str,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        let to = match (target, self.peer(slot).flow) {
            (Some(target), _) => target,
            (None, Flow::Paired(partner)) => partner,
            (None, Flow::Joined) => return Err(NAME_IT),
            (None, _) => return self.put_up(slot, sdp, turn),
        };
        let id = self.id(slot);
        self.forward(to, [Reply::Offer { sdp, target: id, id: Some(id) }.text()], turn)?;
        self.handshakes.begin(slot, to, turn.now);
        // What the target held of the sender's is overtaken by this.
        if matches!(self.peer(to).flow, Flow::Handed(hold) if hold.owner == slot) {
            self.let_go(to);
            self.settle(self.peer(to).room, turn);
        }
        Ok(())
    }

    /// From now on the offer stands, if nobody else's turn it is.
    fn put_up(&mut self, slot: Slot, sdp: &str, turn: &mut Turn) -> Result<(), Refusal> {
        let room = self.peer(slot).room;
        if self.rooms[room as usize].offerer.is_some_and(|offerer| offerer != slot) {
            let peer = self.peer_mut(slot);
            peer.refused = true;
            peer.drop_candidates();
            return refused(Code::NotOfferer, "another peer is the offerer; connect and wait to be asked");
        }
        let text = Reply::Offer { sdp, target: self.id(slot), id: None }.text();
        let Some(memory) = turn.reserve(text.capacity()) else {
            let peer = self.peer_mut(slot);
            peer.refused = true;
            if peer.offer().is_none() {
                peer.drop_candidates();
            }
            return Err(NO_MEMORY);
        };
        self.let_go(slot);
        let peer = self.peer_mut(slot);
        peer.flow = Flow::Offerer;
        peer.refused = false;
        let offering = peer.offering.get_or_insert_default();
        offering.offers = offering.offers.wrapping_add(1);
        let offer = Offer { number: offering.offers, text, held: 0, handed: false, memory };
        if offering.offer.replace(offer).is_some() {
            peer.drop_candidates();
        }
        self.rooms[room as usize].offerer = Some(slot);
        self.rooms[room as usize].moved = true;
        self.settle(room, turn);
        Ok(())
    }

    // ---- Answers ----

    pub(super) fn answer(
        &mut self,
        slot: Slot,
        target: Option<Slot>,
        sdp: &str,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        let flow = self.peer(slot).flow;
        let to = match (target, flow) {
            (Some(target), _) => target,
            (None, Flow::Handed(hold)) => hold.owner,
            (None, Flow::Paired(partner)) => partner,
            (None, _) => {
                return refused(Code::BadMessage, "target_id is missing, and there is no offer to answer");
            }
        };
        let pairs = match flow {
            Flow::Handed(hold) if hold.owner == to && !self.stands(hold) => {
                self.handshakes.end(to, slot, Outcome::Refused, turn.now);
                let refusal = Refusal { code: Code::OfferTaken, message: "that offer was taken or replaced" };
                self.refuse(slot, refusal, target.map(|to| self.id(to).to_owned()).as_deref(), turn);
                self.connect(slot, turn);
                return Ok(());
            }
            Flow::Idle | Flow::Handed(_) => self.peer(to).offer().is_some(),
            _ => false,
        };
        let forwarded = self.forward(to, [Reply::Answer { sdp, id: self.id(slot) }.text()], turn);
        let outcome = if forwarded.is_ok() { Outcome::Answered } else { Outcome::Refused };
        self.handshakes.end(to, slot, outcome, turn.now);
        forwarded?;
        if pairs {
            self.pair(to, slot, turn);
        }
        Ok(())
    }

    /// The offer of `a` is answered by `b`.
    fn pair(&mut self, a: Slot, b: Slot, turn: &mut Turn) {
        self.let_go(b);
        let room = self.peer(a).room;
        self.rooms[room as usize].offerer = None;
        self.rooms[room as usize].moved = true;
        let offering = self.peer_mut(a).offering.as_mut().expect("the offer stands");
        offering.offer = None;
        let candidates = mem::take(&mut offering.candidates);
        offering.candidates_memory = None;
        if !candidates.is_empty() {
            self.tell(b, &Reply::Candidate { candidate: &candidates, id: self.id(a) }, turn);
        }
        for (slot, partner) in [(a, b), (b, a)] {
            let peer = self.peer_mut(slot);
            peer.flow = Flow::Paired(partner);
            peer.drop_candidates();
        }
        self.settle(room, turn);
    }

    // ---- Candidates ----

    pub(super) fn candidates(
        &mut self,
        slot: Slot,
        target: Option<&str>,
        candidates: &Candidates,
        turn: &mut Turn,
    ) -> Result<(), Refusal> {
        let peer = self.peer(slot);
        let was_handed = peer.offer().is_some_and(|offer| offer.handed);
        let to = match (self.target(slot, target), peer.flow) {
            (Ok(Some(target)), _) => target,
            // Trickled to the name of a peer that is still to come: once somebody was handed the offer, a name that is
            // unknown is wrong.
            (Err(_), Flow::Offerer) if !was_handed && target != peer.id() => {
                return self.store(slot, candidates, turn);
            }
            (Err(refusal), _) => return Err(refusal),
            (Ok(None), Flow::Paired(partner)) => partner,
            (Ok(None), Flow::Handed(hold)) if self.stands(hold) => hold.owner,
            (Ok(None), Flow::Handed(_)) => return Ok(()),
            (Ok(None), Flow::Joined) => return Err(NAME_IT),
            (Ok(None), _) if peer.refused => return Ok(()),
            (Ok(None), _) => return self.store(slot, candidates, turn),
        };
        let id = self.id(slot);
        let text = |candidate| Reply::Candidate { candidate, id }.text();
        match candidates {
            Candidates::One(candidate) => self.forward(to, [text(candidate)], turn),
            Candidates::Many(_) => self.forward(to, candidates.iter().map(text).collect::<Vec<_>>(), turn),
        }
    }

    /// Keeps candidates for the offer of their peer, standing or to come.
    fn store(&mut self, slot: Slot, candidates: &Candidates, turn: &mut Turn) -> Result<(), Refusal> {
        let (count, bytes) = self.peer(slot).stored();
        let (count, more) = (count + candidates.len(), candidates.iter().map(str::len).sum::<usize>());
        if count > CANDIDATES_MAX || bytes + more > STORED_BYTES_MAX {
            return refused(Code::TooMany, "at most 64 candidates, and 64 KiB of them, are stored");
        }
        // A string that grows may come to have twice the room it needs.
        let memory = turn.reserve(2 * (more + candidates.len())).ok_or(NO_MEMORY)?;
        let offering = self.peer_mut(slot).offering.get_or_insert_default();
        match &mut offering.candidates_memory {
            Some(reservation) => reservation.absorb(memory),
            None => offering.candidates_memory = Some(memory),
        }
        for candidate in candidates.iter() {
            if !offering.candidates.is_empty() {
                offering.candidates.push('|');
            }
            offering.candidates.push_str(candidate);
        }
        offering.candidate_count = count;
        Ok(())
    }
}
