//! The rules of a room: queue, pairs and mesh.

use std::time::Duration;

use noroshi::limits::OFFER_HOLDERS_MAX;
use noroshi::protocol::Conn;
use noroshi::protocols::noroshi::message::Code;
use serde_json::{Value, json};

use super::{Model, Peer, State};

impl Model {
    // ---- The queue ----

    pub(super) fn enqueue(&mut self, conn: Conn, position: usize) {
        self.peer(conn).state = State::Waiting;
        let now = self.context.now;
        let room = self.room(conn);
        room.queue.insert(position, conn);
        // The deadline starts with the first peer in the queue.
        room.deadline.get_or_insert(now + Duration::from_secs(30));
    }

    pub(super) fn dequeue(&mut self, conn: Conn) {
        let room = self.room(conn);
        room.queue.retain(|other| *other != conn);
        room.deadline = room.deadline.filter(|_| !room.queue.is_empty());
    }

    pub(super) fn restart_deadline(&mut self, room: &str) {
        let due = self.context.now + Duration::from_secs(30);
        let room = self.rooms.get_mut(room).unwrap();
        room.deadline = room.deadline.map(|_| due);
    }

    pub(super) fn offerer(&self, room: &str) -> Option<Conn> {
        let is_it = |peer: &Peer| peer.room == room && matches!(peer.state, State::Offerer);
        self.peers.iter().find(|(_, peer)| is_it(peer)).map(|(conn, _)| *conn)
    }

    /// Returns owner and number of the current offer.
    pub(super) fn current_offer(&self, room: &str) -> Option<(Conn, u64)> {
        let offerer = self.offerer(room)?;
        self.peers[&offerer].offer.as_ref().map(|(number, ..)| (offerer, *number))
    }

    pub(super) fn advance(&mut self, room: &str) {
        while let Some(&first) = self.rooms[room].queue.first() {
            match (self.offerer(room), self.current_offer(room)) {
                (None, _) => {
                    self.dequeue(first);
                    self.request_offer(first);
                }
                (_, Some((owner, number))) if self.holder_count(owner, number) == 0 => {
                    self.dequeue(first);
                    self.deliver_offer(first);
                }
                _ => return,
            }
        }
    }

    /// Returns how many peers hold an offer.
    pub(super) fn holder_count(&self, owner: Conn, number: u64) -> usize {
        let holds =
            |peer: &&Peer| matches!(peer.state, State::HoldingOffer(o, n) if (o, n) == (owner, number));
        self.peers.values().filter(holds).count()
    }

    pub(super) fn request_offer(&mut self, conn: Conn) {
        self.peer(conn).state = State::Offerer;
        self.send(conn, self.with_ice_servers(json!({"type": "offer"})));
        self.restart_deadline(&self.peers[&conn].room.clone());
    }

    pub(super) fn deliver_offer(&mut self, to: Conn) {
        let room = self.peers[&to].room.clone();
        let (owner, number) = self.current_offer(&room).unwrap();
        let peer = self.peer(owner);
        peer.holders.push(to);
        let (_, _, handed) = peer.offer.as_mut().unwrap();
        *handed = true;
        self.send(to, self.with_ice_servers(self.offer_message(owner)));
        self.peer(to).state = State::HoldingOffer(owner, number);
        self.restart_deadline(&room);
    }

    /// Returns the message that delivers a peer's offer.
    pub(super) fn offer_message(&self, owner: Conn) -> Value {
        let peer = &self.peers[&owner];
        let (_, sdp, _) = peer.offer.as_ref().unwrap();
        json!({"type": "offer", "sdp": sdp, "target_id": peer.id})
    }

    /// Returns whether a peer is behind with reading, so that it waits for an offer.
    fn is_congested(&self, conn: Conn) -> bool {
        self.context.room_in_queue.get(&conn) == Some(&0)
    }

    /// Returns the offer for the next `connect`: the current one, if the queue is empty and the offer has few holders.
    pub(super) fn offer_to_next(&self, room: &str) -> Option<(Conn, u64)> {
        let (owner, number) = self.current_offer(room)?;
        let is_free =
            self.rooms[room].queue.is_empty() && self.holder_count(owner, number) < OFFER_HOLDERS_MAX;
        is_free.then_some((owner, number))
    }

    pub(super) fn release_offer(&mut self, conn: Conn) {
        let State::HoldingOffer(owner, _) = self.peers[&conn].state else { panic!("it holds an offer") };
        self.peer(owner).holders.retain(|holder| *holder != conn);
        self.peer(conn).state = State::Idle;
    }

    pub(super) fn on_room_timeout(&mut self, room: &str) {
        let first = self.rooms[room].queue[0];
        match (self.current_offer(room), self.offerer(room)) {
            (None, Some(offerer)) => {
                self.enqueue(offerer, self.rooms[room].queue.len());
                self.dequeue(first);
                self.request_offer(first);
            }
            _ => {
                self.dequeue(first);
                self.deliver_offer(first);
            }
        }
        self.advance(room);
    }

    // ---- Requests ----

    pub(super) fn connect(&mut self, conn: Conn) {
        let room = self.peers[&conn].room.clone();
        match self.peers[&conn].state {
            State::Offerer | State::Waiting | State::Paired(_) => return,
            State::HoldingOffer(owner, number) if self.current_offer(&room) == Some((owner, number)) => {
                return;
            }
            State::HoldingOffer(..) => self.release_offer(conn),
            State::Joined => self.leave_flow(conn),
            _ => {}
        }
        if self.offerer(&room).is_none() {
            self.request_offer(conn);
        } else if self.offer_to_next(&room).is_some() && !self.is_congested(conn) {
            self.deliver_offer(conn);
        } else {
            self.enqueue(conn, self.rooms[&room].queue.len());
        }
        self.advance(&room);
    }

    pub(super) fn target(&self, conn: Conn, target: Option<&str>) -> Result<Option<Conn>, Code> {
        let Some(id) = target else { return Ok(None) };
        let found = self.lookup(&self.peers[&conn].room, id).filter(|found| *found != conn);
        found.map(Some).ok_or(Code::UnknownPeer)
    }

    pub(super) fn offer(&mut self, conn: Conn, target: Option<&str>, sdp: &str) -> Result<(), Code> {
        let room = self.peers[&conn].room.clone();
        let to = match (self.target(conn, target)?, &self.peers[&conn].state) {
            (Some(to), _) => to,
            (None, State::Paired(partner)) => *partner,
            (None, State::Joined) => return Err(Code::BadMessage),
            (None, _) => {
                if self.offerer(&room).is_some_and(|offerer| offerer != conn) {
                    let peer = self.peer(conn);
                    peer.stored_candidates = vec![];
                    peer.offer_rejected = true;
                    return Err(Code::NotOfferer);
                }
                if !self.context.reserve() {
                    let peer = self.peer(conn);
                    peer.offer_rejected = true;
                    if peer.offer.is_none() {
                        peer.stored_candidates = vec![];
                    }
                    return Err(Code::TooMany);
                }
                if let State::HoldingOffer(..) = self.peers[&conn].state {
                    self.release_offer(conn);
                }
                self.offers += 1;
                let number = self.offers;
                let peer = self.peer(conn);
                if peer.offer.replace((number, sdp.to_owned(), false)).is_some() {
                    peer.stored_candidates = vec![];
                }
                peer.state = State::Offerer;
                peer.offer_rejected = false;
                self.restart_deadline(&room);
                self.advance(&room);
                return Ok(());
            }
        };
        let id = self.peers[&conn].id.clone();
        self.forward(to, vec![json!({"type": "offer", "sdp": sdp, "target_id": id, "id": id})])?;
        if matches!(self.peers[&to].state, State::HoldingOffer(owner, _) if owner == conn) {
            self.release_offer(to);
            self.advance(&room);
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, conn: Conn, target: Option<&str>, sdp: &str) -> Result<(), Code> {
        let room = self.peers[&conn].room.clone();
        let to = match (self.target(conn, target)?, &self.peers[&conn].state) {
            (Some(to), _) => to,
            (None, State::HoldingOffer(owner, _)) => *owner,
            (None, State::Paired(partner)) => *partner,
            _ => return Err(Code::BadMessage),
        };
        let current_offer = self.current_offer(&room);
        if let State::HoldingOffer(owner, number) = self.peers[&conn].state
            && owner == to
            && current_offer != Some((owner, number))
        {
            self.error(conn, Code::OfferTaken, target);
            self.connect(conn);
            return Ok(());
        }
        let id = self.peers[&conn].id.clone();
        self.forward(to, vec![json!({"type": "answer", "sdp": sdp, "id": id})])?;
        let free = matches!(self.peers[&conn].state, State::Idle | State::HoldingOffer(..));
        if free && current_offer.is_some_and(|(owner, _)| owner == to) {
            if let State::HoldingOffer(..) = self.peers[&conn].state {
                self.release_offer(conn);
            }
            let owner = self.peer(to);
            let candidates = std::mem::take(&mut owner.stored_candidates).join("|");
            owner.offer = None;
            owner.state = State::Paired(conn);
            let id = owner.id.clone();
            if !candidates.is_empty() {
                self.send(conn, json!({"type": "candidate", "candidate": candidates, "id": id}));
            }
            let peer = self.peer(conn);
            peer.stored_candidates = vec![];
            peer.state = State::Paired(to);
            self.restart_deadline(&room);
            self.advance(&room);
        }
        Ok(())
    }

    pub(super) fn candidates(
        &mut self,
        conn: Conn,
        target: Option<&str>,
        candidates: Vec<&str>,
    ) -> Result<(), Code> {
        let peer = &self.peers[&conn];
        let target_conn = self.target(conn, target);
        let to = match (target_conn, &peer.state) {
            (Ok(Some(to)), _) => Some(to),
            (Err(_), State::Offerer)
                if target != peer.id.as_deref() && !peer.offer.as_ref().is_some_and(|offer| offer.2) =>
            {
                None
            }
            (Err(code), _) => return Err(code),
            (Ok(None), State::Paired(partner)) => Some(*partner),
            (Ok(None), State::HoldingOffer(owner, number)) => {
                if self.current_offer(&peer.room) != Some((*owner, *number)) {
                    return Ok(());
                }
                Some(*owner)
            }
            (Ok(None), State::Joined) => return Err(Code::BadMessage),
            (Ok(None), _) if peer.offer_rejected => return Ok(()),
            (Ok(None), _) => None,
        };
        if let Some(to) = to {
            let id = &peer.id;
            let message = |candidate| json!({"type": "candidate", "candidate": candidate, "id": id});
            let messages = candidates.into_iter().map(message).collect();
            return self.forward(to, messages);
        }
        let stored_candidates =
            [peer.stored_candidates.clone(), candidates.into_iter().map(str::to_owned).collect()].concat();
        if stored_candidates.len() > 64
            || stored_candidates.iter().map(String::len).sum::<usize>() > 64 * 1024
        {
            return Err(Code::TooMany);
        }
        if !self.context.reserve() {
            return Err(Code::TooMany);
        }
        self.peer(conn).stored_candidates = stored_candidates;
        Ok(())
    }

    pub(super) fn join(&mut self, conn: Conn) -> Result<(), Code> {
        let id = self.peers[&conn].id.clone();
        if !matches!(self.peers[&conn].state, State::Joined) {
            if self.room(conn).mesh.len() >= self.mesh_peers_max {
                return Err(Code::RoomFull);
            }
            self.leave_flow(conn);
            for other in self.room(conn).mesh.clone() {
                self.send(other, json!({"type": "peerJoined", "id": id}));
            }
            self.room(conn).mesh.push(conn);
            self.peer(conn).state = State::Joined;
        }
        let others = self.room(conn).mesh.clone().into_iter().filter(|other| *other != conn);
        let others: Vec<Option<String>> = others.map(|other| self.peers[&other].id.clone()).collect();
        self.send(conn, self.with_ice_servers(json!({"type": "joined", "id": id, "peers": others})));
        Ok(())
    }

    /// Takes a registered peer out of its queue, pair or mesh.
    pub(super) fn leave_flow(&mut self, conn: Conn) {
        let room = self.peers[&conn].room.clone();
        let id = self.peers[&conn].id.clone();
        let left = json!({"type": "peerLeft", "id": id});
        match self.peers[&conn].state {
            State::Unregistered | State::Claimant(..) => return,
            State::Idle | State::Offerer => {}
            State::Waiting => self.dequeue(conn),
            State::HoldingOffer(..) => self.release_offer(conn),
            State::Paired(partner) => {
                self.peer(partner).state = State::Idle;
                self.send(partner, left.clone());
            }
            State::Joined => {
                self.room(conn).mesh.retain(|other| *other != conn);
                for other in self.room(conn).mesh.clone() {
                    self.send(other, left.clone());
                }
            }
        }
        let peer = self.peer(conn);
        peer.state = State::Idle;
        peer.offer = None;
        peer.stored_candidates = vec![];
        let holders = std::mem::take(&mut peer.holders);
        for &holder in &holders {
            self.peer(holder).state = State::Idle;
            self.send(holder, left.clone());
        }
        // The holders are queued again, before all others.
        let mut position = 0;
        for holder in holders {
            if self.offer_to_next(&room).is_some() && !self.is_congested(holder) {
                self.deliver_offer(holder);
            } else {
                self.enqueue(holder, position);
                position += 1;
            }
        }
        self.advance(&room);
    }
}
