//! A naive model of noroshi's protocol, written from `PROTOCOL.md`: lists instead of tables and counters.

mod costs;
mod rooms;

use std::collections::BTreeMap;
use std::time::Duration;

use noroshi::http::token::Claims;
use noroshi::limits::CLAIMANTS_MAX;
use noroshi::protocol::{CloseCause, Conn, Target};
use noroshi::protocols::noroshi::message::{self, Body, ClientMessage, Code, Kind, SignalingMessage};
use noroshi::rate_limit::Verdict;
use serde_json::{Value, json};

use super::context::{Context, Output, RoomMember, Rules, credits_for};

pub struct Model {
    context: Context,
    peers: BTreeMap<Conn, Peer>,
    rooms: BTreeMap<String, Room>,
    /// Claimants by room and id. The holder is probed while an entry exists, even an empty one.
    claims: BTreeMap<(String, String), Vec<Conn>>,
    mesh_peers_max: usize,
    /// The JSON array that peers receive, if there are servers.
    ice_servers: Option<Value>,
    offers: u64,
}

#[derive(Default)]
struct Room {
    queue: Vec<Conn>,
    mesh: Vec<Conn>,
    deadline: Option<Duration>,
}

struct Peer {
    room: String,
    /// The id in its token.
    token_id: Option<String>,
    id: Option<String>,
    /// The last id that was rejected for it.
    refused_id: Option<String>,
    state: State,
    /// Number and SDP of the current offer, and whether it was delivered to any peer.
    offer: Option<(u64, String, bool)>,
    /// Peers that hold an offer of this peer and have not answered.
    holders: Vec<Conn>,
    stored_candidates: Vec<String>,
    offer_rejected: bool,
}

#[derive(Clone)]
enum State {
    Unregistered,
    /// The message that claims an id.
    Claimant(String),
    Idle,
    Offerer,
    Waiting,
    HoldingOffer(Conn, u64),
    Paired(Conn),
    Joined,
}

/// How the id of a message is handled.
enum Next {
    Handle,
    Register,
    TakeOver(Conn),
    Claim(Conn),
    Refuse(Code),
    Ignore,
}

impl Model {
    pub fn new(rate: u32, mesh_peers_max: usize, ice_servers: Option<Value>) -> Model {
        Model {
            context: Context::new(rate),
            peers: BTreeMap::new(),
            rooms: BTreeMap::new(),
            claims: BTreeMap::new(),
            mesh_peers_max,
            ice_servers,
            offers: 0,
        }
    }

    // ---- A message ----

    fn classify(&self, conn: Conn, id: &str, body: &Body) -> Next {
        let peer = &self.peers[&conn];
        if let Some(own) = &peer.id {
            return if own == id { Next::Handle } else { Next::Refuse(Code::IdMismatch) };
        }
        if peer.token_id.as_ref().is_some_and(|own| own != id) {
            return Next::Refuse(Code::IdMismatch);
        }
        let asks_again = matches!(body, Body::Connect | Body::Join);
        if peer.refused_id.as_deref() == Some(id) && !asks_again {
            return Next::Ignore;
        }
        let Some(holder) = self.lookup(&peer.room, id) else { return Next::Register };
        if peer.token_id.is_some() {
            return Next::TakeOver(holder);
        }
        let claimants = self.claims.get(&(peer.room.clone(), id.to_owned())).map_or(0, Vec::len);
        if self.peers[&holder].token_id.is_some() || claimants == CLAIMANTS_MAX {
            return Next::Refuse(Code::IdTaken);
        }
        Next::Claim(holder)
    }

    fn serve(&mut self, conn: Conn, target: Option<&str>, body: &Body) {
        let served = match body {
            Body::Connect => return self.connect(conn),
            Body::Leave => return self.leave_flow(conn),
            Body::Offer(sdp) => self.offer(conn, target, sdp),
            Body::Answer(sdp) => self.answer(conn, target, sdp),
            Body::Candidates(candidates) => self.candidates(conn, target, candidates.iter().collect()),
            Body::Join => self.join(conn),
        };
        if let Err(code) = served {
            self.error(conn, code, target);
        }
    }

    /// Answers a ping, with or without an id, and changes nothing.
    fn ping(&mut self, conn: Conn, wants_ice_servers: bool, bytes: usize) {
        let mut pong = json!({"type": "pong"});
        let mut cost = credits_for(bytes);
        if wants_ice_servers && self.peers[&conn].id.is_some() && self.ice_servers.is_some() {
            pong = self.with_ice_servers(pong);
            cost += credits_for(pong.to_string().len());
        }
        match self.context.pay(conn, cost, credits_for(bytes)) {
            Verdict::Pass => {
                self.context.count_message(Kind::Ping.name());
                self.send(conn, pong);
            }
            verdict => self.drop_message(conn, verdict),
        }
    }

    fn with_ice_servers(&self, mut message: Value) -> Value {
        if let Some(ice_servers) = &self.ice_servers {
            message["iceServers"] = ice_servers.clone();
        }
        message
    }

    fn drop_message(&mut self, conn: Conn, verdict: Verdict) {
        match verdict {
            Verdict::Pass => unreachable!("it passed"),
            Verdict::Drop { notify: true } => self.error(conn, Code::RateLimited, None),
            Verdict::Drop { notify: false } => self.context.count_error(Code::RateLimited.name()),
            Verdict::Close => self.close(conn, CloseCause::RateLimited),
        }
    }

    fn send(&mut self, to: Conn, message: Value) {
        self.context.emit(to, Output::Text(message.to_string()));
    }

    fn error(&mut self, to: Conn, code: Code, target: Option<&str>) {
        self.context.count_error(code.name());
        let mut error = json!({"type": "error", "code": code.name()});
        if let Some(target) = target {
            error["target_id"] = target.into();
        }
        self.send(to, error);
    }

    fn forward(&mut self, to: Conn, messages: Vec<Value>) -> Result<(), Code> {
        let texts = messages.iter().map(Value::to_string).collect();
        if self.context.forward(to, texts) { Ok(()) } else { Err(Code::PeerBusy) }
    }

    // ---- Ids ----

    fn lookup(&self, room: &str, id: &str) -> Option<Conn> {
        let is_it = |peer: &Peer| peer.id.as_deref() == Some(id) && peer.room == room;
        self.peers.iter().find(|(_, peer)| is_it(peer)).map(|(conn, _)| *conn)
    }

    fn register(&mut self, conn: Conn, id: &str) {
        let peer = self.peer(conn);
        peer.id = Some(id.to_owned());
        peer.state = State::Idle;
        let room = peer.room.clone();
        self.context.emit(conn, Output::Registered(room));
    }

    fn claim(&mut self, conn: Conn, holder: Conn, id: &str, text: &str, target: Option<&str>) {
        if !self.context.reserve() {
            return self.error(conn, Code::TooMany, target);
        }
        let key = (self.peers[&conn].room.clone(), id.to_owned());
        if !self.claims.contains_key(&key) {
            self.context.probe(holder);
        }
        self.claims.entry(key).or_default().push(conn);
        self.peer(conn).state = State::Claimant(text.to_owned());
        self.context.emit(conn, Output::Pause);
    }

    /// Ends the claim to a peer's id. Returns the claimants with their messages.
    fn end_claim(&mut self, holder: Conn) -> Vec<(Conn, String)> {
        let peer = &self.peers[&holder];
        let Some(id) = &peer.id else { return vec![] };
        let Some(claimants) = self.claims.remove(&(peer.room.clone(), id.clone())) else { return vec![] };
        self.context.end_probe(holder);
        let mut ended = Vec::new();
        for conn in claimants {
            let state = std::mem::replace(&mut self.peer(conn).state, State::Unregistered);
            let State::Claimant(first) = state else { panic!("it claims") };
            self.context.emit(conn, Output::Resume);
            self.peer(conn).refused_id = None;
            ended.push((conn, first));
        }
        ended
    }

    fn refuse_id(&mut self, conn: Conn, id: &str, target: Option<&str>) {
        self.peer(conn).refused_id = Some(id.to_owned());
        self.error(conn, Code::IdTaken, target);
    }

    fn reject(&mut self, conn: Conn, id: &str, first: &str) {
        let request = parse_claim(first);
        self.refuse_id(conn, id, request.target.as_deref());
    }

    fn close(&mut self, conn: Conn, why: CloseCause) {
        self.context.close(conn, why);
        self.leave_flow(conn);
        self.remove_peer(conn);
    }

    /// Removes a disconnected peer. Its id goes to its first claimant.
    fn remove_peer(&mut self, conn: Conn) {
        let claimants = self.end_claim(conn);
        let peer = self.peers.remove(&conn).expect("the connection is known");
        for others in self.claims.values_mut() {
            others.retain(|claimant| *claimant != conn);
        }
        self.context.emit(conn, Output::Left(peer.room.clone(), peer.id.clone()));
        if self.peers.values().all(|other| other.room != peer.room) {
            self.rooms.remove(&peer.room);
        }
        let Some(((first, text), others)) = claimants.split_first() else { return };
        let id = peer.id.expect("an id is claimed");
        self.register(*first, &id);
        for (other, text) in others {
            self.reject(*other, &id, text);
        }
        // Its size was charged when it arrived.
        let request = parse_claim(text);
        let paid = credits_for(text.len());
        let cost = paid + self.cost_of_effects(*first, request.target.as_deref(), &request.body, None);
        match self.context.pay(*first, cost, paid) {
            Verdict::Pass => self.serve(*first, request.target.as_deref(), &request.body),
            verdict => self.drop_message(*first, verdict),
        }
    }

    fn peer(&mut self, conn: Conn) -> &mut Peer {
        self.peers.get_mut(&conn).expect("the connection is known")
    }

    fn room(&mut self, conn: Conn) -> &mut Room {
        self.rooms.get_mut(&self.peers[&conn].room).expect("a peer is in a room")
    }
}

/// Parses the message that claimed an id, which was well-formed when it arrived.
fn parse_claim(text: &str) -> SignalingMessage<'_> {
    match message::parse(text) {
        Ok(ClientMessage::Signaling(message)) => message,
        other => panic!("{other:?} claims no id"),
    }
}

impl Rules for Model {
    fn context(&mut self) -> &mut Context {
        &mut self.context
    }

    fn connected(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>) {
        self.rooms.entry(target.room.clone()).or_default();
        let peer = Peer {
            room: target.room.clone(),
            token_id: claims.and_then(|claims| claims.id.as_deref()).map(str::to_owned),
            id: None,
            refused_id: None,
            state: State::Unregistered,
            offer: None,
            holders: vec![],
            stored_candidates: vec![],
            offer_rejected: false,
        };
        self.peers.insert(conn, peer);
    }

    fn text(&mut self, conn: Conn, text: &str) {
        let request = match message::parse(text) {
            Ok(ClientMessage::Signaling(request)) => request,
            Ok(ClientMessage::Ping { wants_ice_servers }) => {
                return self.ping(conn, wants_ice_servers, text.len());
            }
            Err((refusal, target)) => return self.error(conn, refusal.code, target.as_deref()),
        };
        let id = &*request.id;
        let target = request.target.as_deref();
        let body = &request.body;
        let next = self.classify(conn, id, body);
        let mut cost = credits_for(text.len());
        if let Body::Candidates(candidates) = body {
            cost = cost.max(candidates.iter().count());
        }
        match next {
            Next::Handle | Next::Register => cost += self.cost_of_effects(conn, target, body, None),
            Next::TakeOver(holder) => {
                cost += self.cost_of_departure(holder);
                cost += self.cost_of_effects(conn, target, body, Some(holder));
            }
            Next::Claim(_) | Next::Refuse(_) | Next::Ignore => {}
        }
        let verdict = self.context.pay(conn, cost, credits_for(text.len()));
        if verdict != Verdict::Pass {
            return self.drop_message(conn, verdict);
        }
        self.context.count_message(body.kind().name());
        match next {
            Next::Handle => {}
            Next::Register => self.register(conn, id),
            Next::TakeOver(holder) => {
                for (claimant, first) in self.end_claim(holder) {
                    self.reject(claimant, id, &first);
                }
                self.close(holder, CloseCause::Replaced);
                self.register(conn, id);
            }
            Next::Claim(holder) => return self.claim(conn, holder, id, text, target),
            Next::Refuse(Code::IdTaken) => return self.refuse_id(conn, id, target),
            Next::Refuse(code) => return self.error(conn, code, target),
            Next::Ignore => return self.context.count_error(Code::IdTaken.name()),
        }
        self.serve(conn, target, body);
    }

    fn binary(&mut self, conn: Conn, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(conn, text),
            Err(_) => self.error(conn, Code::BadJson, None),
        }
    }

    fn dropped(&mut self, conn: Conn, tell: bool) {
        self.drop_message(conn, Verdict::Drop { notify: tell });
    }

    fn alive(&mut self, conn: Conn) {
        let Some(id) = self.peers[&conn].id.clone() else { return };
        for (claimant, first) in self.end_claim(conn) {
            self.reject(claimant, &id, &first);
        }
    }

    fn silent(&mut self, conn: Conn) {
        let peer = &self.peers[&conn];
        let key = (peer.room.clone(), peer.id.clone().expect("only registered peers are probed"));
        if self.claims[&key].is_empty() {
            self.claims.remove(&key);
        } else {
            self.close(conn, CloseCause::Replaced);
        }
    }

    fn disconnected(&mut self, conn: Conn) {
        if self.peers.contains_key(&conn) {
            self.leave_flow(conn);
            self.remove_peer(conn);
        }
    }

    fn timer(&mut self) {
        let due = self.timer_due();
        let (name, _) = self.rooms.iter().find(|(_, room)| room.deadline == due).expect("one is due");
        self.on_room_timeout(&name.clone());
    }

    fn timer_due(&self) -> Option<Duration> {
        self.rooms.values().filter_map(|room| room.deadline).min()
    }

    fn room_exists(&self, target: &Target) -> bool {
        self.rooms.contains_key(&target.room)
    }

    fn member(&self, conn: Conn) -> Option<RoomMember> {
        let peer = self.peers.get(&conn)?;
        let state = match peer.state {
            State::Unregistered => "nameless",
            State::Claimant(..) => "claimant",
            State::Idle => "idle",
            State::Offerer => "offerer",
            State::Waiting => "waiting",
            State::HoldingOffer(..) => "handed",
            State::Paired(_) => "paired",
            State::Joined => "joined",
        };
        Some((peer.room.clone(), peer.id.clone(), state))
    }

    fn counts(&self) -> (usize, usize) {
        (self.peers.values().filter(|peer| peer.id.is_some()).count(), self.rooms.len())
    }

    fn stored_bytes(&self) -> usize {
        let mut bytes = 0;
        for peer in self.peers.values() {
            if let State::Claimant(first) = &peer.state {
                bytes += first.len();
            }
            if let Some((_, sdp, _)) = &peer.offer {
                bytes += sdp.len();
            }
            bytes += peer.stored_candidates.iter().map(String::len).sum::<usize>();
        }
        bytes
    }
}
