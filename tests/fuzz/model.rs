//! The rules of signaling as the README tells them, without regard for cost: no table but lists, no counters.
//!
//! It knows no rate and no limit of what a claimant sends; whoever drives it stays below them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use noroshi::message::{self, Body, Code};
use noroshi::protocol::{Close, Conn, Input};
use serde_json::{Value, json};

/// What comes out. Errors are without the sentence for people.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Text(Value),
    Ping,
    Close(Close),
    Registered,
    /// The room and the id that it had there.
    Left(String, Option<String>),
}

pub struct Model {
    pub now: Duration,
    /// Who takes nothing that is forwarded.
    pub full: BTreeSet<Conn>,
    pub said: Vec<(Conn, Said)>,
    peers: BTreeMap<Conn, Peer>,
    rooms: BTreeMap<String, Room>,
    /// By room and id: until when, and who claims it.
    claims: BTreeMap<(String, String), (Duration, Vec<Conn>)>,
    mesh_peers_max: usize,
    offers: u64,
}

#[derive(Default)]
struct Room {
    line: Vec<Conn>,
    mesh: Vec<Conn>,
    patience: Option<Duration>,
}

struct Peer {
    room: String,
    id: Option<String>,
    state: State,
    /// The number and SDP of the offer that stands, and whether anybody was handed it.
    offer: Option<(u64, String, bool)>,
    /// Who was handed an offer of this one's and has not answered.
    holders: Vec<Conn>,
    stored: Vec<String>,
    refused: bool,
}

#[derive(Clone)]
enum State {
    Nameless,
    Claimant(Claimant),
    Idle,
    Offerer,
    Waiting,
    Handed(Conn, u64),
    Paired(Conn),
    Joined,
}

#[derive(Clone)]
struct Claimant {
    id: String,
    first: String,
    kept: VecDeque<String>,
    taken: Vec<String>,
}

impl Model {
    pub fn new(mesh_peers_max: usize) -> Model {
        Model {
            now: Duration::ZERO,
            full: BTreeSet::new(),
            said: Vec::new(),
            peers: BTreeMap::new(),
            rooms: BTreeMap::new(),
            claims: BTreeMap::new(),
            mesh_peers_max,
            offers: 0,
        }
    }

    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Connected(conn, target, _) => {
                self.rooms.entry(target.room.clone()).or_default();
                let (room, state) = (target.room.clone(), State::Nameless);
                let peer = Peer {
                    room,
                    id: None,
                    state,
                    offer: None,
                    holders: vec![],
                    stored: vec![],
                    refused: false,
                };
                self.peers.insert(conn, peer);
            }
            Input::Text(conn, text) => match self.peers.get_mut(&conn).map(|peer| &mut peer.state) {
                None => {}
                Some(State::Claimant(claimant)) => claimant.kept.push_back(text.to_owned()),
                Some(_) => self.obey(conn, text, &[]),
            },
            Input::Binary(conn, bytes) => {
                self.handle(Input::Text(conn, std::str::from_utf8(bytes).unwrap_or("not JSON")));
            }
            Input::Alive(conn) => {
                let claim = self.claim_of(conn).and_then(|key| self.claims.remove(&key));
                for claimant in claim.into_iter().flat_map(|(_, claimants)| claimants) {
                    self.reject(claimant);
                }
            }
            Input::Disconnected(conn) => {
                if self.peers.contains_key(&conn) {
                    self.depart(conn);
                    self.exit(conn);
                }
            }
            Input::Dropped { .. } | Input::Silent(_) => unreachable!("the door makes these"),
            Input::Time => {
                while let Some(due) = self.wake_at().filter(|due| *due <= self.now) {
                    let room = self.rooms.iter().find(|(_, room)| room.patience == Some(due));
                    match room.map(|(name, _)| name.clone()) {
                        Some(room) => self.lose_patience(&room),
                        None => {
                            // Of those that are due at the same moment, first come first.
                            let due = self.claims.iter().filter(|(_, (until, _))| *until == due);
                            let holders = due.map(|((room, id), _)| self.lookup(room, id).unwrap());
                            let holder = holders.min().unwrap();
                            self.depart(holder);
                            self.said.push((holder, Said::Close(Close::Replaced)));
                            self.exit(holder);
                        }
                    }
                }
            }
        }
    }

    pub fn wake_at(&self) -> Option<Duration> {
        let rooms = self.rooms.values().filter_map(|room| room.patience);
        rooms.chain(self.claims.values().map(|(until, _)| *until)).min()
    }

    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub fn peers(&self) -> usize {
        self.peers.values().filter(|peer| peer.id.is_some()).count()
    }

    // ---- Words ----

    fn obey(&mut self, conn: Conn, text: &str, taken: &[String]) {
        let request = match message::parse(text) {
            Ok(request) => request,
            Err((refusal, target)) => return self.error(conn, refusal.code, target.as_deref()),
        };
        let (id, target) = (request.id.into_owned(), request.target.as_deref());
        if taken.contains(&id) {
            return;
        }
        let peer = &self.peers[&conn];
        match &peer.id {
            Some(own) if *own != id => return self.error(conn, Code::IdMismatch, target),
            Some(_) => {}
            None if self.lookup(&peer.room, &id).is_some() => return self.claim(conn, id, text),
            None => self.register(conn, id),
        }
        let served = match request.body {
            Body::Connect => return self.connect(conn),
            Body::Leave => return self.depart(conn),
            Body::Offer(sdp) => self.offer(conn, target, sdp),
            Body::Answer(sdp) => self.answer(conn, target, sdp),
            Body::Candidates(candidates) => self.candidates(conn, target, candidates.iter().collect()),
            Body::Join => self.join(conn),
        };
        if let Err(code) = served {
            self.error(conn, code, target);
        }
    }

    fn say(&mut self, to: Conn, message: Value) {
        self.said.push((to, Said::Text(message)));
    }

    fn error(&mut self, to: Conn, code: Code, target: Option<&str>) {
        let mut error = json!({"type": "error", "code": code.name()});
        if let Some(target) = target {
            error["target_id"] = target.into();
        }
        self.say(to, error);
    }

    fn forward(&mut self, to: Conn, messages: Vec<Value>) -> Result<(), Code> {
        if self.full.contains(&to) {
            return Err(Code::PeerBusy);
        }
        for message in messages {
            self.say(to, message);
        }
        Ok(())
    }

    // ---- Ids ----

    fn lookup(&self, room: &str, id: &str) -> Option<Conn> {
        let is_it = |peer: &Peer| peer.room == room && peer.id.as_deref() == Some(id);
        self.peers.iter().find(|(_, peer)| is_it(peer)).map(|(conn, _)| *conn)
    }

    fn register(&mut self, conn: Conn, id: String) {
        let peer = self.peer(conn);
        (peer.id, peer.state) = (Some(id), State::Idle);
        self.said.push((conn, Said::Registered));
    }

    fn claim(&mut self, conn: Conn, id: String, text: &str) {
        let room = self.peers[&conn].room.clone();
        let holder = self.lookup(&room, &id).unwrap();
        let (until, said) = (self.now + Duration::from_secs(5), &mut self.said);
        let claim = self.claims.entry((room, id.clone())).or_insert_with(|| {
            said.push((holder, Said::Ping));
            (until, vec![])
        });
        claim.1.push(conn);
        let claimant = Claimant { id, first: text.to_owned(), kept: VecDeque::new(), taken: vec![] };
        self.peer(conn).state = State::Claimant(claimant);
    }

    /// The claim of what this one holds.
    fn claim_of(&self, holder: Conn) -> Option<(String, String)> {
        let peer = self.peers.get(&holder)?;
        let key = (peer.room.clone(), peer.id.clone()?);
        (self.lookup(&key.0, &key.1) == Some(holder) && self.claims.contains_key(&key)).then_some(key)
    }

    /// Takes the id, or the claim, from who has departed.
    /// Who has departed is forgotten.
    fn exit(&mut self, conn: Conn) {
        let claim = self.claim_of(conn).map(|key| (key.1.clone(), self.claims.remove(&key).unwrap().1));
        let peer = self.peers.remove(&conn).unwrap();
        self.said.push((conn, Said::Left(peer.room.clone(), peer.id)));
        if self.peers.values().all(|other| other.room != peer.room) {
            self.rooms.remove(&peer.room);
        }
        if let State::Claimant(_) = peer.state {
            for (_, claimants) in self.claims.values_mut() {
                claimants.retain(|claimant| *claimant != conn);
            }
        }
        let Some((id, claimants)) = claim else { return };
        for (i, conn) in claimants.into_iter().enumerate() {
            if i == 0 {
                let claimant = self.unclaim(conn);
                self.register(conn, id.clone());
                self.obey(conn, &claimant.first, &claimant.taken);
                self.replay(conn, claimant);
            } else {
                self.reject(conn);
            }
        }
    }

    fn reject(&mut self, conn: Conn) {
        let mut claimant = self.unclaim(conn);
        let first = claimant.first.clone();
        self.error(conn, Code::IdTaken, message::parse(&first).unwrap().target.as_deref());
        claimant.taken.push(claimant.id.clone());
        self.replay(conn, claimant);
    }

    fn unclaim(&mut self, conn: Conn) -> Claimant {
        match std::mem::replace(&mut self.peer(conn).state, State::Nameless) {
            State::Claimant(claimant) => claimant,
            _ => panic!("it claims"),
        }
    }

    fn replay(&mut self, conn: Conn, mut claimant: Claimant) {
        while let Some(text) = claimant.kept.pop_front() {
            self.obey(conn, &text, &claimant.taken);
            if let State::Claimant(next) = &mut self.peer(conn).state {
                (next.kept, next.taken) = (claimant.kept, claimant.taken);
                return;
            }
        }
    }

    // ---- The line ----

    fn wait(&mut self, conn: Conn, place: usize) {
        self.peer(conn).state = State::Waiting;
        let (now, room) = (self.now, self.room(conn));
        room.line.insert(place, conn);
        // The time begins when the line gets its first.
        room.patience.get_or_insert(now + Duration::from_secs(30));
    }

    fn unwait(&mut self, conn: Conn) {
        let room = self.room(conn);
        room.line.retain(|other| *other != conn);
        room.patience = room.patience.filter(|_| !room.line.is_empty());
    }

    fn moved(&mut self, room: &str) {
        let due = self.now + Duration::from_secs(30);
        let room = self.rooms.get_mut(room).unwrap();
        room.patience = room.patience.map(|_| due);
    }

    fn offerer(&self, room: &str) -> Option<Conn> {
        let is_it = |peer: &Peer| peer.room == room && matches!(peer.state, State::Offerer);
        self.peers.iter().find(|(_, peer)| is_it(peer)).map(|(conn, _)| *conn)
    }

    /// The owner and the number of the offer that stands.
    fn standing(&self, room: &str) -> Option<(Conn, u64)> {
        let offerer = self.offerer(room)?;
        self.peers[&offerer].offer.as_ref().map(|(number, ..)| (offerer, *number))
    }

    fn settle(&mut self, room: &str) {
        while let Some(&first) = self.rooms[room].line.first() {
            match (self.offerer(room), self.standing(room)) {
                (None, _) => {
                    self.unwait(first);
                    self.ask(first);
                }
                (_, Some((owner, number))) if !self.is_held(owner, number) => {
                    self.unwait(first);
                    self.hand(first);
                }
                _ => return,
            }
        }
    }

    fn is_held(&self, owner: Conn, number: u64) -> bool {
        self.peers.values().any(|peer| matches!(peer.state, State::Handed(o, n) if (o, n) == (owner, number)))
    }

    fn ask(&mut self, conn: Conn) {
        self.peer(conn).state = State::Offerer;
        self.say(conn, json!({"type": "offer"}));
        self.moved(&self.peers[&conn].room.clone());
    }

    fn hand(&mut self, to: Conn) {
        let room = self.peers[&to].room.clone();
        let (owner, number) = self.standing(&room).unwrap();
        let peer = self.peer(owner);
        peer.holders.push(to);
        let (_, sdp, handed) = peer.offer.as_mut().unwrap();
        *handed = true;
        let message = json!({"type": "offer", "sdp": sdp, "target_id": peer.id});
        self.say(to, message);
        self.peer(to).state = State::Handed(owner, number);
        self.moved(&room);
    }

    fn let_go(&mut self, conn: Conn) {
        let State::Handed(owner, _) = self.peers[&conn].state else { panic!("it holds an offer") };
        self.peer(owner).holders.retain(|holder| *holder != conn);
        self.peer(conn).state = State::Idle;
    }

    fn lose_patience(&mut self, room: &str) {
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

    fn connect(&mut self, conn: Conn) {
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
        } else if self.standing(&room).is_some() && self.rooms[&room].line.is_empty() {
            self.hand(conn);
        } else {
            self.wait(conn, self.rooms[&room].line.len());
        }
        self.settle(&room);
    }

    fn target(&self, conn: Conn, target: Option<&str>) -> Result<Option<Conn>, Code> {
        let Some(id) = target else { return Ok(None) };
        let found = self.lookup(&self.peers[&conn].room, id).filter(|found| *found != conn);
        found.map(Some).ok_or(Code::UnknownPeer)
    }

    fn offer(&mut self, conn: Conn, target: Option<&str>, sdp: &str) -> Result<(), Code> {
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

    fn answer(&mut self, conn: Conn, target: Option<&str>, sdp: &str) -> Result<(), Code> {
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

    fn candidates(&mut self, conn: Conn, target: Option<&str>, candidates: Vec<&str>) -> Result<(), Code> {
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
        self.peer(conn).stored = stored;
        Ok(())
    }

    fn join(&mut self, conn: Conn) -> Result<(), Code> {
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
    fn depart(&mut self, conn: Conn) {
        let room = self.peers[&conn].room.clone();
        let id = self.peers[&conn].id.clone();
        let left = json!({"type": "peerLeft", "id": id});
        match self.peers[&conn].state {
            State::Nameless | State::Claimant(_) => return,
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
        // They connect afresh, before those in the line.
        let was_empty = self.rooms[&room].line.is_empty();
        for (place, &holder) in holders.iter().enumerate() {
            if was_empty && self.standing(&room).is_some() {
                self.hand(holder);
            } else {
                self.wait(holder, place);
            }
        }
        self.settle(&room);
    }

    fn peer(&mut self, conn: Conn) -> &mut Peer {
        self.peers.get_mut(&conn).unwrap()
    }

    fn room(&mut self, conn: Conn) -> &mut Room {
        self.rooms.get_mut(&self.peers[&conn].room).unwrap()
    }
}
