//! The rules of signaling as the README tells them, without regard for cost: no table but lists, no counters.
//!
//! It knows no rate and no limit of what a claimant sends; whoever drives it stays below them.

mod rooms;

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

    fn peer(&mut self, conn: Conn) -> &mut Peer {
        self.peers.get_mut(&conn).unwrap()
    }

    fn room(&mut self, conn: Conn) -> &mut Room {
        self.rooms.get_mut(&self.peers[&conn].room).unwrap()
    }
}
