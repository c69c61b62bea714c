//! Random input from many peers to all protocols at once. The state must be consistent after each input and empty at
//! the end.
//!
//! A failing run prints its seed; `TEST_SEED=… cargo test --test protocol simulation` replays it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::common::input::Input;
use crate::common::memory::{Recorded, Recorder, dispatcher, remaining_state, target};
use crate::common::rng::Rng;
use noroshi::config::Config;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::{BASE_BYTES, HOLD_TIME, OFFER_HOLDERS_MAX};
use noroshi::memory_budget::Budget;
use noroshi::protocol::{Conn, Target, Times};
use noroshi::protocols::noroshi::message::Code;
use noroshi::protocols::{Dispatcher, ayame, gstreamer, matchbox, peerjs, ywebrtc};
use serde_json::Value;

const IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "nobody"];
const ROOMS: [&str; 3] = ["", "tea", "mesh"];
const SECRET: &[u8] = b"a secret that is thirty-two bytes";

struct World {
    rng: Rng,
    dispatcher: Dispatcher,
    now: Duration,
    out: Recorder,
    peers: BTreeMap<Conn, Peer>,
    /// Paused connections with the messages that they have sent since.
    paused: BTreeMap<Conn, VecDeque<String>>,
    /// Resumed connections with the messages that are still to be delivered.
    resumed: VecDeque<(Conn, VecDeque<String>)>,
    connections: u64,
    secrets: Option<Secrets>,
    /// How many of three peers answer pings.
    responsive: u64,
    /// Ids that matchbox has assigned.
    names: Vec<String>,
    /// Ids of peers and sessions that GStreamer's protocol has assigned.
    gstreamer_ids: Vec<String>,
    /// Reasons for which peers were closed, and pongs that they received.
    seen: BTreeSet<String>,
}

/// The protocol of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Noroshi,
    Ayame,
    Matchbox,
    PeerJs,
    YWebrtc,
    GStreamer,
}

/// A connected peer.
struct Peer {
    dialect: Dialect,
    /// The id in most of its messages.
    id: &'static str,
    is_registered: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let secrets = Secrets::parse(SECRET).expect("a secret");
        let memory_bytes = *rng.choose(&[None, None, Some(500), Some(20_000)]);
        let config = Config {
            mesh_peers_max: 3,
            rate_max: *rng.choose(&[0, 0, 1, 2, 100]),
            memory_bytes_max: memory_bytes.map(|bytes| BASE_BYTES + bytes),
            ice_servers: if rng.below(2) == 0 { vec!["stun:a.example".to_owned()] } else { vec![] },
            mounts: vec![
                (&ayame::DESCRIPTOR.endpoint, "/signaling".to_owned()),
                (&matchbox::DESCRIPTOR.endpoint, String::new()),
                (&peerjs::DESCRIPTOR.endpoint, "/peerjs".to_owned()),
                (&ywebrtc::DESCRIPTOR.endpoint, "/y-webrtc".to_owned()),
                (&gstreamer::DESCRIPTOR.endpoint, "/gst".to_owned()),
            ],
            token_secrets: (rng.below(2) == 0).then_some(secrets),
            ..Config::default()
        };
        World {
            responsive: rng.below(4),
            rng,
            dispatcher: dispatcher(&config),
            now: Duration::ZERO,
            out: Recorder { budget: Budget::new(&config), ..Recorder::default() },
            peers: BTreeMap::new(),
            paused: BTreeMap::new(),
            resumed: VecDeque::new(),
            connections: 0,
            secrets: config.token_secrets,
            names: Vec::new(),
            gstreamer_ids: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Handles an input and everything that follows from it, in the order of the server.
    fn input(&mut self, input: Input) {
        self.handle(input);
        while let Some((conn, sent)) = self.resumed.pop_front() {
            self.deliver(conn, sent);
        }
    }

    fn handle(&mut self, input: Input) {
        let times = Times { now: self.now, wall: self.now };
        input.deliver(&mut self.dispatcher, times, &mut self.out);
        self.dispatcher.check();
        self.apply_effects();
    }

    /// Applies the recorded effects to the peers.
    fn apply_effects(&mut self) {
        while let Some(effect) = self.out.effects.pop_front() {
            match effect {
                Recorded::Send(to, text) => self.receive(to, &text),
                Recorded::Ping(to) => {
                    assert!(self.peers.contains_key(&to), "a ping to a peer that has disconnected");
                    if self.rng.below(3) < self.responsive && !self.paused.contains_key(&to) {
                        self.handle(Input::Alive(to));
                    }
                }
                Recorded::PauseReading(conn) => {
                    assert!(self.peers.contains_key(&conn), "a disconnected peer is paused");
                    assert!(self.paused.insert(conn, VecDeque::new()).is_none(), "paused twice");
                }
                Recorded::ResumeReading(conn) => {
                    let sent = self.paused.remove(&conn).expect("only paused connections are resumed");
                    self.resumed.push_back((conn, sent));
                }
                Recorded::Close(conn, why) => {
                    self.seen.insert(format!("{why:?}"));
                    assert!(self.peers.remove(&conn).is_some(), "closed twice");
                    self.remove_peer(conn);
                    // The server also reports the disconnect of a connection that a protocol has closed.
                    self.handle(Input::Disconnected(conn));
                }
                Recorded::Registered(conn) => {
                    let peer = self.peers.get_mut(&conn).expect("only connected peers register");
                    assert!(!peer.is_registered, "registered twice");
                    peer.is_registered = true;
                }
                Recorded::Entered(..) | Recorded::LimitReached(..) | Recorded::Left(_) => {}
            }
        }
    }

    fn receive(&mut self, to: Conn, text: &str) {
        let peer =
            self.peers.get(&to).unwrap_or_else(|| panic!("{text} is sent to a peer that has disconnected"));
        let message: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{text} is no JSON"));
        if peer.dialect == Dialect::Matchbox {
            self.names.extend(message["IdAssigned"].as_str().map(str::to_owned));
        } else {
            assert!(message["type"].is_string(), "{text}");
            if peer.dialect == Dialect::GStreamer {
                let ids = [&message["peerId"], &message["sessionId"]];
                self.gstreamer_ids.extend(ids.iter().filter_map(|id| id.as_str()).map(str::to_owned));
                self.seen.insert(format!("GStreamer {}", message["type"].as_str().unwrap_or_default()));
            }
            if message["type"] == "pong" {
                let has_ice_servers = message["iceServers"].is_array();
                let event = if has_ice_servers { "pong with ICE servers" } else { "pong" };
                self.seen.insert(event.to_owned());
            }
        }
    }

    fn remove_peer(&mut self, conn: Conn) {
        self.out.full.remove(&conn);
        self.paused.remove(&conn);
        self.resumed.retain(|(resumed, _)| *resumed != conn);
    }

    /// Reads messages of a connection until it is paused or closed, and reports a liveness signal after them.
    fn deliver(&mut self, conn: Conn, mut sent: VecDeque<String>) {
        while let Some(text) = sent.pop_front() {
            self.handle(Input::Text(conn, &text));
            if !self.peers.contains_key(&conn) {
                return;
            }
            if let Some(waiting) = self.paused.get_mut(&conn) {
                waiting.extend(sent);
                break;
            }
        }
        self.handle(Input::Alive(conn));
    }

    fn send(&mut self, conn: Conn, texts: Vec<String>) {
        match self.paused.get_mut(&conn) {
            Some(waiting) => waiting.extend(texts),
            None => {
                self.deliver(conn, texts.into());
                while let Some((conn, sent)) = self.resumed.pop_front() {
                    self.deliver(conn, sent);
                }
            }
        }
    }

    fn message(&mut self, conn: Conn) -> String {
        let Peer { dialect, id, is_registered } = self.peers[&conn];
        match dialect {
            Dialect::Noroshi => self.noroshi_message(id),
            Dialect::Ayame => self.ayame_message(id, is_registered),
            Dialect::Matchbox => self.matchbox_message(),
            Dialect::PeerJs => self.peerjs_message(),
            Dialect::YWebrtc => self.ywebrtc_message(),
            Dialect::GStreamer => self.gstreamer_message(),
        }
    }

    fn noroshi_message(&mut self, own: &'static str) -> String {
        let rng = &mut self.rng;
        let kinds = [
            "connect",
            "connect",
            "offer",
            "offer",
            "answer",
            "answer",
            "candidateAdd",
            "join",
            "leave",
            "ping",
            "x",
        ];
        let kind = rng.choose(&kinds);
        let id = if rng.below(20) == 0 { rng.choose(&IDS) } else { own };
        let mut text = format!(r#"{{"type":"{kind}","id":"{id}""#);
        if rng.below(4) == 0 {
            text.push_str(r#","iceServers":true"#);
        }
        if rng.below(2) == 0 {
            text.push_str(&format!(r#","target_id":"{}""#, rng.choose(&IDS)));
        }
        match rng.below(4) {
            0 => text.push_str(r#","candidates":[1,2,3,4,5,6,7,8,9,0]"#),
            1 => text.push_str(&format!(r#","candidate":"{}""#, "x".repeat(rng.below(9000) as usize))),
            _ => text.push_str(r#","sdp":{"v":0}"#),
        }
        if rng.below(50) > 0 {
            text.push('}');
        }
        text
    }

    fn ayame_message(&mut self, client: &str, is_registered: bool) -> String {
        let rng = &mut self.rng;
        match rng.below(40) {
            n if n < if is_registered { 1 } else { 36 } => {
                let room = *rng.choose(&["tea", "coffee"]);
                let standalone = *rng.choose(&["true", "false", "null", "false"]);
                let seconds = *rng.choose(&[60, 1_000_000]);
                let id = *rng.choose(&[None, None, Some("a")]);
                let until = Duration::from_secs(seconds);
                let claims =
                    Claims { expires_at: until, room: None, room_prefix: None, id: id.map(Box::from) };
                let key = self.secrets.as_ref().map(|secrets| secrets.sign(&claims)).unwrap_or_default();
                format!(
                    r#"{{"type":"register","roomId":"{room}","clientId":"{client}","key":"{key}","standalone":{standalone}}}"#
                )
            }
            36 => r#"{"type":"connected"}"#.to_owned(),
            37 => rng.choose(&["{", r#"{"type":"x"}"#, r#"{"type":"register"}"#]).to_string(),
            1..10 => r#"{"type":"pong"}"#.to_owned(),
            _ => format!(r#"{{"type":"{}"}}"#, rng.choose(&["offer", "answer", "candidate"])),
        }
    }

    fn matchbox_message(&mut self) -> String {
        let rng = &mut self.rng;
        let id = match self.names.len() {
            0 => "00000000-0000-4000-8000-000000000000",
            n => &self.names[rng.below(n as u64) as usize],
        };
        match rng.below(8) {
            0 => r#""KeepAlive""#.to_owned(),
            1 => "{".to_owned(),
            2 => format!(r#"{{"Signal":{{"receiver":"{id}"}}}}"#),
            _ => format!(r#"{{"Signal":{{"receiver":"{id}","data":[{}]}}}}"#, rng.below(10)),
        }
    }

    fn peerjs_message(&mut self) -> String {
        let rng = &mut self.rng;
        let to = *rng.choose(&IDS);
        let kinds = ["OFFER", "OFFER", "ANSWER", "CANDIDATE", "CANDIDATE", "LEAVE", "HEARTBEAT", "EXPIRE"];
        match rng.below(40) {
            0 => r#"{"type":"LEAVE"}"#.to_owned(),
            1 => "{".to_owned(),
            _ => {
                let payload = "x".repeat(rng.below(900) as usize);
                format!(r#"{{"type":"{}","payload":"{payload}","dst":"{to}"}}"#, rng.choose(&kinds))
            }
        }
    }

    /// Returns the query of a PeerJS client.
    fn peerjs_query(&mut self, id: &str) -> Query {
        let chosen = *self.rng.choose(&["t1", "t2", "t3", ""]);
        let token_id = *self.rng.choose(&[None, Some("a"), Some("b")]);
        let claims = Claims {
            expires_at: Duration::from_secs(1_000_000),
            id: token_id.map(Box::from),
            ..Claims::default()
        };
        let token = match &self.secrets {
            Some(secrets) if !chosen.is_empty() => secrets.sign(&claims),
            _ => chosen.to_owned(),
        };
        let key = *self.rng.choose(&["peerjs", "peerjs", "k2", ""]);
        Query::new(&format!("key={key}&id={id}&token={token}"))
    }

    fn ywebrtc_message(&mut self) -> String {
        let rng = &mut self.rng;
        let topic = *rng.choose(&["tea", "coffee", "milk"]);
        let other = *rng.choose(&["tea", "coffee", "milk", ""]);
        match rng.below(12) {
            0 => r#"{"type":"ping"}"#.to_owned(),
            1 => "{".to_owned(),
            2 => format!(r#"{{"type":"unsubscribe","topics":["{topic}","{other}"]}}"#),
            3..7 => format!(r#"{{"type":"subscribe","topics":["{topic}","{other}"]}}"#),
            _ => format!(r#"{{"type":"publish","topic":"{topic}","data":{}}}"#, rng.below(10)),
        }
    }

    fn gstreamer_message(&mut self) -> String {
        let rng = &mut self.rng;
        // The last ones are those of peers and sessions that are there.
        let recent = &self.gstreamer_ids[self.gstreamer_ids.len().saturating_sub(12)..];
        let id = match recent.len() {
            0 => "a",
            n => &recent[rng.below(n as u64) as usize],
        };
        match rng.below(20) {
            0 => r#"{"type":"setProtocolVersion","version":"v1_1"}"#.to_owned(),
            1 => "{".to_owned(),
            2 => r#"{"type":"list"}"#.to_owned(),
            3 => r#"{"type":"listConsumers"}"#.to_owned(),
            4..9 => {
                let roles =
                    ["", r#""producer""#, r#""consumer""#, r#""listener""#, r#""listener","producer""#];
                let roles = rng.choose(&roles);
                let meta = "x".repeat(rng.below(900) as usize);
                format!(r#"{{"type":"setPeerStatus","roles":[{roles}],"meta":"{meta}"}}"#)
            }
            9..14 => format!(r#"{{"type":"startSession","peerId":"{id}"}}"#),
            14 => format!(r#"{{"type":"endSession","sessionId":"{id}"}}"#),
            15 => format!(r#"{{"type":"endSessionV1_1","sessionId":"{id}","error":"x"}}"#),
            _ => {
                let kind = rng.choose(&["offer", "answer"]);
                format!(r#"{{"type":"peer","sessionId":"{id}","sdp":{{"type":"{kind}","sdp":"x"}}}}"#)
            }
        }
    }

    fn connect(&mut self) {
        let dialects = [
            Dialect::Noroshi,
            Dialect::Noroshi,
            Dialect::Noroshi,
            Dialect::Ayame,
            Dialect::Ayame,
            Dialect::Matchbox,
            Dialect::PeerJs,
            Dialect::YWebrtc,
            Dialect::GStreamer,
            Dialect::GStreamer,
        ];
        let dialect = *self.rng.choose(&dialects);
        let room = *self.rng.choose(&ROOMS);
        let query = *self.rng.choose(&["", "next=2", "next=3"]);
        let id = *self.rng.choose(&IDS[..5]);
        let target = match dialect {
            Dialect::Noroshi => target(room),
            Dialect::Ayame => {
                Target { protocol: &ayame::DESCRIPTOR, room: String::new(), query: Query::default() }
            }
            Dialect::Matchbox => {
                Target { protocol: &matchbox::DESCRIPTOR, room: room.to_owned(), query: Query::new(query) }
            }
            Dialect::PeerJs => {
                let query = self.peerjs_query(id);
                Target { protocol: &peerjs::DESCRIPTOR, room: String::new(), query }
            }
            Dialect::YWebrtc => {
                Target { protocol: &ywebrtc::DESCRIPTOR, room: String::new(), query: Query::default() }
            }
            Dialect::GStreamer => {
                Target { protocol: &gstreamer::DESCRIPTOR, room: room.to_owned(), query: Query::default() }
            }
        };
        if !self.dispatcher.has_capacity(&target) {
            return;
        }
        let token_id = (self.rng.below(3) == 0).then(|| id.into());
        let claims = Claims {
            expires_at: Duration::from_secs(1_000_000),
            room: None,
            room_prefix: (dialect == Dialect::YWebrtc && self.rng.below(2) == 0).then(|| "t".into()),
            id: token_id,
        };
        let claims = self.secrets.is_some().then_some(&claims);
        // The lowest free slot, so that slots are reused.
        let taken: BTreeSet<usize> = self.peers.keys().map(|conn| conn.slot()).collect();
        let slot = (0..).find(|slot| !taken.contains(slot)).expect("a free slot");
        self.connections += 1;
        let conn = Conn::new(self.connections, slot);
        self.peers.insert(conn, Peer { dialect, id, is_registered: false });
        self.input(Input::Connected(conn, &target, claims));
    }

    fn step(&mut self) {
        let chosen = (!self.peers.is_empty()).then(|| {
            let n = self.rng.below(self.peers.len() as u64) as usize;
            *self.peers.keys().nth(n).expect("one of them")
        });
        match (self.rng.below(24), chosen) {
            (0..3, _) | (_, None) => self.connect(),
            (3, Some(conn)) => {
                self.peers.remove(&conn);
                self.remove_peer(conn);
                self.input(Input::Disconnected(conn));
            }
            (4, Some(conn)) if !self.paused.contains_key(&conn) => self.input(Input::Alive(conn)),
            (5, Some(conn)) => {
                if !self.out.full.remove(&conn) {
                    self.out.full.insert(conn);
                }
            }
            (6, _) => {
                self.now += Duration::from_millis(self.rng.below(40_000));
                self.input(Input::Time);
            }
            (7, _) => {
                if let Some(due) = self.dispatcher.next_timer() {
                    self.now = self.now.max(due);
                    self.input(Input::Time);
                    assert!(self.dispatcher.next_timer().is_none_or(|at| at > self.now));
                }
            }
            (8, Some(conn)) if !self.paused.contains_key(&conn) => {
                for _ in 0..20 {
                    if self.peers.contains_key(&conn) {
                        let times = Times { now: self.now, wall: self.now };
                        self.dispatcher.charge_frame(times, conn, &mut self.out);
                        self.apply_effects();
                    }
                }
            }
            // A peer exceeds the rate for longer than it is tolerated.
            (9, Some(conn)) => {
                for _ in 0..16 {
                    if self.peers.contains_key(&conn) {
                        let text = self.message(conn);
                        self.send(conn, vec![text]);
                        self.now += Duration::from_millis(400);
                        self.input(Input::Time);
                    }
                }
            }
            (_, Some(conn)) => {
                let count = 1 + self.rng.below(3);
                let texts = (0..count).map(|_| self.message(conn)).collect();
                self.send(conn, texts);
            }
        }
    }

    /// Disconnects everybody and returns the names of the errors, closings and pongs that have occurred.
    fn finish(mut self) -> BTreeSet<String> {
        while let Some((conn, _)) = self.peers.pop_first() {
            self.remove_peer(conn);
            self.input(Input::Disconnected(conn));
        }
        let counts = self.dispatcher.each().flat_map(|(_, protocol)| protocol.counts(self.now).errors);
        let errors = counts.filter(|(_, count)| *count > 0).map(|(name, _)| name.to_owned());
        self.seen.extend(errors);
        // PeerJS holds messages of senders that have left.
        self.now += HOLD_TIME;
        self.input(Input::Time);
        assert_eq!(remaining_state(&self.dispatcher), (0, 0, None));
        assert!(self.paused.is_empty() && self.resumed.is_empty());
        assert_eq!(self.out.budget.reserved(), 0, "all memory is released");
        self.seen
    }
}

#[test]
fn all_protocols_stay_consistent_under_random_input() {
    let seeds = match std::env::var("TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..120).collect(),
    };
    let is_one = seeds.len() == 1;
    let mut seen = BTreeSet::new();
    for seed in seeds {
        println!("TEST_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..500 {
            world.step();
        }
        seen.extend(world.finish());
    }
    // A simulation in which these never occur does not test enough.
    let other_errors = [
        "full",
        "token_refused",
        "not_understood",
        "bad_parameters",
        "id_taken",
        "expired",
        "hold_full",
        "peer_busy",
        "too_many_topics",
        "forbidden",
        "unknown_session",
        "not_in_session",
        "consumer_offer",
        "late_version",
        "too_many",
        "GStreamer endSession",
        "GStreamer endSessionV1_1",
        "GStreamer listConsumers",
        "GStreamer peer",
        "GStreamer peerStatusChanged",
    ];
    let errors = Code::ALL.into_iter().map(Code::name).chain(other_errors);
    let closings = ["Replaced", "RateLimited", "Finished"];
    let pongs = ["pong", "pong with ICE servers"];
    for event in errors.chain(closings).chain(pongs) {
        assert!(is_one || seen.contains(event), "{event} never happened");
    }
}

// ---- Large rooms ----

struct CrowdedRoom {
    dispatcher: Dispatcher,
    out: Recorder,
    effects: usize,
}

const CROWD_PEERS: usize = 20_000;

impl CrowdedRoom {
    /// Connects the peers to one room.
    fn new() -> CrowdedRoom {
        let dispatcher = dispatcher(&Config::default());
        let mut room = CrowdedRoom { dispatcher, out: Recorder::default(), effects: 0 };
        for i in 0..CROWD_PEERS {
            room.input(Input::Connected(conn(i), &target(""), None));
            room.send(i, "connect", "");
        }
        room
    }

    fn input(&mut self, input: Input) {
        input.deliver(&mut self.dispatcher, Times::default(), &mut self.out);
        let effects = self.out.effects.drain(..).filter(|effect| !matches!(effect, Recorded::Left(_)));
        self.effects += effects.count();
    }

    fn send(&mut self, index: usize, kind: &str, more: &str) {
        let text = format!(r#"{{"type":"{kind}","id":"{index}"{more}}}"#);
        self.input(Input::Text(conn(index), &text));
    }

    fn finish(mut self) {
        for i in 0..CROWD_PEERS {
            self.input(Input::Disconnected(conn(i)));
        }
        assert_eq!(remaining_state(&self.dispatcher), (0, 0, None));
    }
}

fn conn(i: usize) -> Conn {
    Conn::new(i as u64 + 1, i)
}

/// The number of effects shows that no peer receives unnecessary messages. If a step took linear time, these tests
/// would take minutes.
#[test]
fn crowded_room_advances_when_its_offerers_leave() {
    let mut room = CrowdedRoom::new();
    assert_eq!(room.effects, CROWD_PEERS + 1, "all peers are registered, and one is the offerer");
    room.effects = 0;
    for i in 0..CROWD_PEERS {
        room.send(i, "leave", "");
    }
    assert_eq!(room.effects, CROWD_PEERS - 1, "each time the next peer becomes the offerer");
    room.finish();
}

#[test]
fn crowded_room_allows_leaving_from_any_position() {
    let mut room = CrowdedRoom::new();
    room.effects = 0;
    for i in (1..CROWD_PEERS).rev().step_by(2).chain((1..CROWD_PEERS).step_by(2)) {
        room.input(Input::Disconnected(conn(i)));
    }
    assert_eq!(room.effects, 0);
    room.finish();
}

#[test]
fn crowded_room_forms_pairs() {
    let mut room = CrowdedRoom::new();
    room.effects = 0;
    for i in (0..CROWD_PEERS).step_by(2) {
        room.send(i, "offer", r#","sdp":1"#);
        room.send(i + 1, "answer", r#","sdp":2"#);
        room.input(Input::Disconnected(conn(i)));
    }
    // The offer, the answer, the request to the next offerer, and `peerLeft` to the partner.
    assert_eq!(room.effects, 4 * (CROWD_PEERS / 2) - 1);
    room.finish();
}

#[test]
fn crowded_room_limits_the_holders_of_an_offer() {
    let mut room = CrowdedRoom::new();
    for i in 1..CROWD_PEERS {
        room.send(i, "leave", "");
    }
    room.send(0, "offer", r#","sdp":1"#);
    room.effects = 0;
    for i in 1..CROWD_PEERS {
        room.send(i, "connect", "");
    }
    assert_eq!(room.effects, OFFER_HOLDERS_MAX, "the offer has the maximum number of holders");
    // One answer is accepted. The other holders are too late and are queued again.
    room.effects = 0;
    for i in 1..=OFFER_HOLDERS_MAX {
        room.send(i, "answer", r#","target_id":"0""#);
    }
    let answer = 1;
    let errors = OFFER_HOLDERS_MAX - 1;
    let request = 1;
    assert_eq!(room.effects, answer + errors + request);
    room.finish();
}
