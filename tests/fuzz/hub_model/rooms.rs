//! What happens in a room: the line, pairs, the mesh.

use std::time::Duration;

use noroshi::config::OFFER_HOLDERS_MAX;
use noroshi::protocol::Conn;
use noroshi::protocols::noroshi::message::Code;
use serde_json::{Value, json};

use super::{Model, Peer, State};

impl Model {
    // ---- The line ----

    pub(super) fn wait(&mut self, conn: Conn, place: usize) {
        self.peer(conn).state = State::Waiting;
        let now = self.context.now;
        let room = self.room(conn);
        room.line.insert(place, conn);
        // The time begins when the line gets its first.
        room.patience.get_or_insert(now + Duration::from_secs(30));
    }

    pub(super) fn unwait(&mut self, conn: Conn) {
        let room = self.room(conn);
        room.line.retain(|other| *other != conn);
        room.patience = room.patience.filter(|_| !room.line.is_empty());
    }

    pub(super) fn moved(&mut self, room: &str) {
        let due = self.context.now + Duration::from_secs(30);
        let room = self.rooms.get_mut(room).unwrap();
        room.patience = room.patience.map(|_| due);
    }

    pub(super) fn offerer(&self, room: &str) -> Option<Conn> {
        let is_it = |peer: &Peer| peer.room == room && matches!(peer.state, State::Offerer);
        self.peers.iter().find(|(_, peer)| is_it(peer)).map(|(conn, _)| *conn)
    }

    /// The owner and the number of the offer that stands.
    pub(super) fn standing(&self, room: &str) -> Option<(Conn, u64)> {
        let offerer = self.offerer(room)?;
        self.peers[&offerer].offer.as_ref().map(|(number, ..)| (offerer, *number))
    }

    pub(super) fn settle(&mut self, room: &str) {
        while let Some(&first) = self.rooms[room].line.first() {
            match (self.offerer(room), self.standing(room)) {
                (None, _) => {
                    self.unwait(first);
                    self.ask(first);
                }
                (_, Some((owner, number))) if self.held(owner, number) == 0 => {
                    self.unwait(first);
                    self.hand(first);
                }
                _ => return,
            }
        }
    }

    /// How many hold an offer.
    pub(super) fn held(&self, owner: Conn, number: u64) -> usize {
        let holds = |peer: &&Peer| matches!(peer.state, State::Handed(o, n) if (o, n) == (owner, number));
        self.peers.values().filter(holds).count()
    }

    pub(super) fn ask(&mut self, conn: Conn) {
        self.peer(conn).state = State::Offerer;
        self.say(conn, json!({"type": "offer"}));
        self.moved(&self.peers[&conn].room.clone());
    }

    pub(super) fn hand(&mut self, to: Conn) {
        let room = self.peers[&to].room.clone();
        let (owner, number) = self.standing(&room).unwrap();
        let peer = self.peer(owner);
        peer.holders.push(to);
        let (_, _, handed) = peer.offer.as_mut().unwrap();
        *handed = true;
        let message = self.offer_text(owner);
        self.say(to, message);
        self.peer(to).state = State::Handed(owner, number);
        self.moved(&room);
    }

    /// The message that hands out the offer of a peer.
    pub(super) fn offer_text(&self, owner: Conn) -> Value {
        let peer = &self.peers[&owner];
        let (_, sdp, _) = peer.offer.as_ref().unwrap();
        json!({"type": "offer", "sdp": sdp, "target_id": peer.id})
    }

    /// The offer that the next who connects is handed: one that stands, if nobody waits and not too many hold it.
    pub(super) fn offer_to_next(&self, room: &str) -> Option<(Conn, u64)> {
        let (owner, number) = self.standing(room)?;
        let is_free = self.rooms[room].line.is_empty() && self.held(owner, number) < OFFER_HOLDERS_MAX;
        is_free.then_some((owner, number))
    }

    pub(super) fn let_go(&mut self, conn: Conn) {
        let State::Handed(owner, _) = self.peers[&conn].state else { panic!("it holds an offer") };
        self.peer(owner).holders.retain(|holder| *holder != conn);
        self.peer(conn).state = State::Idle;
    }

    pub(super) fn lose_patience(&mut self, room: &str) {
        let first = self.rooms[room].line[0];
        match (self.standing(room), self.offerer(room)) {
            (None, Some(offerer)) => {
                self.wait(offerer, self.rooms[room].line.len());
                self.unwait(first);
                self.ask(first);
            }
            _ => {
                self.unwait(first);
                self.hand(first);
            }
        }
        self.settle(room);
    }

    // ---- Requests ----

    /// A peer that is behind with reading waits for an offer.
    fn is_congested(&self, conn: Conn) -> bool {
        self.context.room_in_queue.get(&conn) == Some(&0)
    }

    pub(super) fn connect(&mut self, conn: Conn) {
        let room = self.peers[&conn].room.clone();
        match self.peers[&conn].state {
            State::Offerer | State::Waiting | State::Paired(_) => return,
            State::Handed(owner, number) if self.standing(&room) == Some((owner, number)) => return,
            State::Handed(..) => self.let_go(conn),
            State::Joined => self.depart(conn),
            _ => {}
        }
        if self.offerer(&room).is_none() {
            self.ask(conn);
        } else if self.offer_to_next(&room).is_some() && !self.is_congested(conn) {
            self.hand(conn);
        } else {
            self.wait(conn, self.rooms[&room].line.len());
        }
        self.settle(&room);
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
                    (peer.stored, peer.refused) = (vec![], true);
                    return Err(Code::NotOfferer);
                }
                if !self.context.reserve() {
                    let peer = self.peer(conn);
                    peer.refused = true;
                    if peer.offer.is_none() {
                        peer.stored = vec![];
                    }
                    return Err(Code::TooMany);
                }
                if let State::Handed(..) = self.peers[&conn].state {
                    self.let_go(conn);
                }
                self.offers += 1;
                let number = self.offers;
                let peer = self.peer(conn);
                if peer.offer.replace((number, sdp.to_owned(), false)).is_some() {
                    peer.stored = vec![];
                }
                (peer.state, peer.refused) = (State::Offerer, false);
                self.moved(&room);
                self.settle(&room);
                return Ok(());
            }
        };
        let id = self.peers[&conn].id.clone();
        self.forward(to, vec![json!({"type": "offer", "sdp": sdp, "target_id": id, "id": id})])?;
        if matches!(self.peers[&to].state, State::Handed(owner, _) if owner == conn) {
            self.let_go(to);
            self.settle(&room);
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, conn: Conn, target: Option<&str>, sdp: &str) -> Result<(), Code> {
        let room = self.peers[&conn].room.clone();
        let to = match (self.target(conn, target)?, &self.peers[&conn].state) {
            (Some(to), _) => to,
            (None, State::Handed(owner, _)) => *owner,
            (None, State::Paired(partner)) => *partner,
            _ => return Err(Code::BadMessage),
        };
        let standing = self.standing(&room);
        if let State::Handed(owner, number) = self.peers[&conn].state
            && owner == to
            && standing != Some((owner, number))
        {
            self.error(conn, Code::OfferTaken, target);
            self.connect(conn);
            return Ok(());
        }
        let id = self.peers[&conn].id.clone();
        self.forward(to, vec![json!({"type": "answer", "sdp": sdp, "id": id})])?;
        let free = matches!(self.peers[&conn].state, State::Idle | State::Handed(..));
        if free && standing.is_some_and(|(owner, _)| owner == to) {
            if let State::Handed(..) = self.peers[&conn].state {
                self.let_go(conn);
            }
            let owner = self.peer(to);
            let candidates = std::mem::take(&mut owner.stored).join("|");
            (owner.offer, owner.state) = (None, State::Paired(conn));
            let id = owner.id.clone();
            if !candidates.is_empty() {
                self.say(conn, json!({"type": "candidate", "candidate": candidates, "id": id}));
            }
            let peer = self.peer(conn);
            (peer.stored, peer.state) = (vec![], State::Paired(to));
            self.moved(&room);
            self.settle(&room);
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
        let named = self.target(conn, target);
        let to = match (named, &peer.state) {
            (Ok(Some(to)), _) => Some(to),
            (Err(_), State::Offerer)
                if target != peer.id.as_deref() && !peer.offer.as_ref().is_some_and(|offer| offer.2) =>
            {
                None
            }
            (Err(code), _) => return Err(code),
            (Ok(None), State::Paired(partner)) => Some(*partner),
            (Ok(None), State::Handed(owner, number)) => {
                if self.standing(&peer.room) != Some((*owner, *number)) {
                    return Ok(());
                }
                Some(*owner)
            }
            (Ok(None), State::Joined) => return Err(Code::BadMessage),
            (Ok(None), _) if peer.refused => return Ok(()),
            (Ok(None), _) => None,
        };
        if let Some(to) = to {
            let id = &peer.id;
            let message = |candidate| json!({"type": "candidate", "candidate": candidate, "id": id});
            let messages = candidates.into_iter().map(message).collect();
            return self.forward(to, messages);
        }
        let stored = [peer.stored.clone(), candidates.into_iter().map(str::to_owned).collect()].concat();
        if stored.len() > 64 || stored.iter().map(String::len).sum::<usize>() > 64 * 1024 {
            return Err(Code::TooMany);
        }
        if !self.context.reserve() {
            return Err(Code::TooMany);
        }
        self.peer(conn).stored = stored;
        Ok(())
    }

    pub(super) fn join(&mut self, conn: Conn) -> Result<(), Code> {
        let id = self.peers[&conn].id.clone();
        if !matches!(self.peers[&conn].state, State::Joined) {
            if self.room(conn).mesh.len() >= self.mesh_peers_max {
                return Err(Code::RoomFull);
            }
            self.depart(conn);
            for other in self.room(conn).mesh.clone() {
                self.say(other, json!({"type": "peerJoined", "id": id}));
            }
            self.room(conn).mesh.push(conn);
            self.peer(conn).state = State::Joined;
        }
        let others = self.room(conn).mesh.clone().into_iter().filter(|other| *other != conn);
        let others: Vec<Option<String>> = others.map(|other| self.peers[&other].id.clone()).collect();
        self.say(conn, json!({"type": "joined", "id": id, "peers": others}));
        Ok(())
    }

    /// Takes a registered peer out of whatever flow it is in.
    pub(super) fn depart(&mut self, conn: Conn) {
        let room = self.peers[&conn].room.clone();
        let id = self.peers[&conn].id.clone();
        let left = json!({"type": "peerLeft", "id": id});
        match self.peers[&conn].state {
            State::Nameless | State::Claimant(..) => return,
            State::Idle | State::Offerer => {}
            State::Waiting => self.unwait(conn),
            State::Handed(..) => self.let_go(conn),
            State::Paired(partner) => {
                self.peer(partner).state = State::Idle;
                self.say(partner, left.clone());
            }
            State::Joined => {
                self.room(conn).mesh.retain(|other| *other != conn);
                for other in self.room(conn).mesh.clone() {
                    self.say(other, left.clone());
                }
            }
        }
        let peer = self.peer(conn);
        (peer.state, peer.offer, peer.stored) = (State::Idle, None, vec![]);
        let holders = std::mem::take(&mut peer.holders);
        for &holder in &holders {
            self.peer(holder).state = State::Idle;
            self.say(holder, left.clone());
        }
        // They connect again, before those in the line.
        let mut place = 0;
        for holder in holders {
            if self.offer_to_next(&room).is_some() && !self.is_congested(holder) {
                self.hand(holder);
            } else {
                self.wait(holder, place);
                place += 1;
            }
        }
        self.settle(&room);
    }
}
