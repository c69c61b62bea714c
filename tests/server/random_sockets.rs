//! Random input from many peers to a server on real sockets, in one thread. The state must be consistent after each
//! iteration and empty at the end, and a well-behaved pair must not be disturbed.
//!
//! Peers use all protocols with valid and invalid messages, slow and broken connections, under small limits. Each run
//! first prints its seed. `TEST_SECONDS=600` runs for that long, `TEST_SEED=…` replays one seed, and `TEST_STEPS=…`
//! sets the length of each run.

use std::fs;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Once;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::memory::remaining_state;
use crate::common::pipe::{CLOSE, PING, PONG, REQUEST, TEXT, close, frame, plain_frame};
use crate::common::raw::{LOOPBACK, Raw, run_iteration, server, text, upgrade};
use crate::common::rng::Rng;
use crate::common::transcript::SECRET;
use log::{LevelFilter, Log, Metadata, Record};
use noroshi::config::{Config, Secret};
use noroshi::http::ListenerKind;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::{BASE_BYTES, CONNECTION_BYTES, HOLD_TIME, KIB};
use noroshi::protocols::{ayame, gstreamer, matchbox, peerjs, ywebrtc};
use noroshi::server::Server;
use serde_json::{Value, json};

/// Seconds for which seeds are run, unless TEST_SECONDS is set.
const SECONDS: u64 = 5;
/// Steps of one run, unless TEST_STEPS is set.
const STEPS: usize = 400;
/// Concurrent connections besides the pair.
const PEERS: usize = 40;
/// Iterations within which a candidate of the pair must arrive. An iteration handles at least 4,096 units of work, and
/// no peer can cause more than about 512 of them before the others are served.
const PAIR_ITERATIONS_MAX: usize = 8;
/// Bytes that one connection may use beyond its share when `--max-memory` is exhausted: always-granted memory, and
/// buffers that have twice the capacity of their content.
const ALWAYS_BYTES: usize = 4 * KIB;

/// Unwritten bytes of a connection above which it sends nothing more.
const UNWRITTEN_MAX: usize = 64 * KIB;

/// Seconds of good behaviour within which all peers must be served.
const RECOVERY_SECONDS: usize = 60;
/// The payload of the ping that shows whether a peer is served.
const LAST_PING: &[u8] = b"last";

const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
const PATHS: [&str; 24] = [
    "/ws/tea",
    "/ws/tea",
    "/ws/tea",
    "/ws/tea",
    "/ws/tea",
    "/ws/mesh",
    "/ws",
    "/ws/a%20b",
    "/signaling",
    "/signaling",
    "/games/chess",
    "/games/chess",
    "/games/chess?next=2",
    "/games/chess?next=3",
    "/peerjs",
    "/peerjs",
    "/peerjs/peerjs",
    "/y-webrtc",
    "/y-webrtc",
    "/y-webrtc/tea",
    "/gst",
    "/gst/tea",
    "/gst/tea",
    "/gst/tea",
];
const REQUESTS: [&str; 11] = [
    "/healthz",
    "/healthz",
    "/metrics",
    "/rooms",
    "/rooms?room=tea",
    "/",
    "/noroshi.js",
    "/nowhere",
    "/ws",
    "/peerjs/peerjs/id",
    "/peerjs/peers",
];
const PAIR: [&str; 2] = ["P", "Q"];
/// A secret unknown to the server.
const OTHER_SECRET: &[u8] = b"a secret that the server does not know";

/// A logger that fails the test if a log line contains a line break.
struct LineCheck;

impl Log for LineCheck {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let line = record.args().to_string();
        assert!(!line.chars().any(char::is_control), "a line of the log has a control character: {line:?}");
    }

    fn flush(&self) {}
}

/// A misbehaving connection.
struct Peer {
    raw: Raw,
    id: &'static str,
    dialect: ProtocolId,
    /// Maximum bytes written in one step.
    write_max: usize,
    /// Maximum bytes read in one step.
    read_max: usize,
    /// Whether a fragmented message is incomplete.
    is_fragmented: bool,
    /// Whether an incomplete frame has been sent, so that later bytes become part of it.
    is_cut: bool,
    /// Whether its receive buffer is so small that the kernel's clock determines the pace of TCP.
    is_narrow: bool,
    /// Whether its last ping was answered.
    is_served: bool,
    /// Whether an Ayame client has sent `register`.
    is_registered: bool,
    /// The requested room.
    room: &'static str,
    /// The id of a matchbox or GStreamer client, and the ids that it has received.
    known: Vec<String>,
    /// Bytes sent again in each step.
    flood: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProtocolId {
    Noroshi,
    Ayame,
    Matchbox,
    PeerJs,
    YWebrtc,
    GStreamer,
    Http,
}

struct World {
    rng: Rng,
    server: Server,
    address: SocketAddr,
    config: Config,
    /// The server's secret file.
    secret_file: PathBuf,
    peers: Vec<Option<Peer>>,
    /// The well-behaved pair.
    pair: [Raw; 2],
    /// Number of candidates that the pair has exchanged.
    exchanged: usize,
    /// Maximum iterations for one candidate.
    iterations_max: usize,
    /// Time by which the clock has advanced since the pair's last exchange.
    since_exchange: Duration,
    /// Remaining time in which the pair must not be disturbed. `None`: until the end of the run.
    undisturbed_time: Option<Duration>,
}

/// Returns a number from an environment variable.
fn environment<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// Returns a token with this lifetime.
fn token(secret: &[u8], seconds: i64, room: Option<&str>, id: Option<&str>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let until = Duration::from_secs(now.saturating_add_signed(seconds));
    Secrets::parse(secret).unwrap().sign(&Claims {
        expires_at: until,
        room: room.map(Box::from),
        id: id.map(Box::from),
        ..Claims::default()
    })
}

fn configuration(rng: &mut Rng, secret_file: &PathBuf) -> Config {
    fs::write(secret_file, SECRET).unwrap();
    let has_tokens = rng.below(2) == 0;
    let has_relay = rng.below(2) == 0;
    Config {
        connections_max: *rng.choose(&[12, 24, 100, 100]),
        connections_per_ip_max: *rng.choose(&[0, 0, 8, 100]),
        memory_bytes_max: *rng.choose(&[None, Some(100 * KIB), Some(300 * KIB), Some(1000 * KIB)]),
        mesh_peers_max: *rng.choose(&[3, 64]),
        message_bytes_max: *rng.choose(&[KIB, 4 * KIB, 64 * KIB]),
        rate_max: *rng.choose(&[2, 5, 20, 100, 0]),
        ping_interval: Duration::from_secs(*rng.choose(&[1, 5, 25])),
        ice_servers: if has_relay { vec!["turn:turn.example".to_owned()] } else { Vec::new() },
        turn_secret_file: has_relay.then(|| secret_file.clone()),
        turn_secret: has_relay.then(|| Secret("relay".to_owned())),
        token_secret_file: has_tokens.then(|| secret_file.clone()),
        token_secrets: has_tokens.then(|| Secrets::parse(SECRET).unwrap()),
        mounts: vec![
            (&ayame::DESCRIPTOR.endpoint, "/signaling".to_owned()),
            (&matchbox::DESCRIPTOR.endpoint, "/games".to_owned()),
            (&peerjs::DESCRIPTOR.endpoint, "/peerjs".to_owned()),
            (&ywebrtc::DESCRIPTOR.endpoint, "/y-webrtc".to_owned()),
            (&gstreamer::DESCRIPTOR.endpoint, "/gst".to_owned()),
        ],
        drain: Duration::from_secs(20),
        metrics: Some((LOOPBACK, 0).into()),
        ..Config::default()
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let file = format!("random-sockets-{}-secret", std::process::id());
        let secret_file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
        let mut config = configuration(&mut rng, &secret_file);
        config.memory_bytes_max = config.memory_bytes_max.map(|bytes| BASE_BYTES + bytes);
        let (mut server, address) = server(&config);
        // The pair has its own addresses, so that no limit by address applies.
        let pair = [2, 3].map(|last| {
            let mut raw = Raw::connect(address, Ipv4Addr::new(127, 0, 0, last), None);
            let id = PAIR[usize::from(last) - 2];
            let path = match config.token_secrets {
                Some(_) => format!("/ws/pair?token={}", token(SECRET, 86_400, Some("pair"), Some(id))),
                None => "/ws/pair".to_owned(),
            };
            raw.send(&upgrade(&path));
            raw.send(&text(&json!({"type": "leave", "id": id}).to_string()));
            raw
        });
        for _ in 0..3 {
            run_iteration(&mut server);
        }
        let mut peers = Vec::new();
        peers.resize_with(PEERS, || None);
        World {
            rng,
            server,
            address,
            config,
            secret_file,
            peers,
            pair,
            exchanged: 0,
            iterations_max: 0,
            since_exchange: Duration::ZERO,
            undisturbed_time: None,
        }
    }

    fn run(mut self, steps: usize) -> usize {
        let end = self.rng.below(4);
        for step in 0..steps {
            if step == steps * 3 / 4 {
                match end {
                    0 => {
                        self.server.drain();
                        self.undisturbed_time = Some(self.config.drain / 2 - Duration::from_secs(2));
                    }
                    1 => {
                        self.server.stop();
                        self.undisturbed_time = Some(Duration::ZERO);
                    }
                    _ => {}
                }
            }
            self.step();
        }
        if self.undisturbed_time.is_none() {
            self.assert_all_peers_are_served();
        }
        self.finish()
    }

    fn step(&mut self) {
        for _ in 0..1 + self.rng.below(12) {
            let place = self.rng.below(PEERS as u64) as usize;
            match self.peers[place].take() {
                None => self.peers[place] = self.connect(),
                Some(peer) => self.peers[place] = self.run_action(peer),
            }
        }
        if self.rng.below(60) == 0 {
            self.reload();
        }
        for _ in 0..self.rng.below(4) {
            self.run_iteration();
        }
        self.read_pair();
        self.run_peers();
        self.advance();
    }

    /// Runs one iteration of the loop and checks the counted memory.
    fn run_iteration(&mut self) {
        run_iteration(&mut self.server);
        let used = self.server.shared().budget.used();
        let max = self.config.memory_bytes_max.unwrap_or(usize::MAX / 2);
        let sessions = self.server.sessions();
        let always = sessions * (CONNECTION_BYTES + ALWAYS_BYTES);
        assert!(used <= max + always, "{used} bytes are used by {sessions} connections, {max} are allowed");
    }

    fn is_listening(&self) -> bool {
        self.server.addresses(ListenerKind::Main).next().is_some()
    }

    // ---- Peers ----

    fn connect(&mut self) -> Option<Peer> {
        if !self.is_listening() {
            return None;
        }
        let rng = &mut self.rng;
        let from = Ipv4Addr::new(127, 0, 0, *rng.choose(&[1, 1, 1, 4, 5]));
        let buffer = *rng.choose(&[None, None, None, Some(1)]);
        let is_plain = rng.below(10) == 0;
        let is_for_metrics = is_plain && rng.below(2) == 0;
        let metrics = self.server.addresses(ListenerKind::Operator).next().unwrap();
        let to = if is_for_metrics { metrics } else { self.address };
        let path = if is_plain { *rng.choose(&REQUESTS) } else { *rng.choose(&PATHS) };
        let dialect = match path {
            _ if is_plain => ProtocolId::Http,
            path if path.starts_with("/ws") => ProtocolId::Noroshi,
            path if path.starts_with("/games") => ProtocolId::Matchbox,
            path if path.starts_with("/peerjs") => ProtocolId::PeerJs,
            path if path.starts_with("/y-webrtc") => ProtocolId::YWebrtc,
            path if path.starts_with("/gst") => ProtocolId::GStreamer,
            _ => ProtocolId::Ayame,
        };
        let id = IDS[rng.below(IDS.len() as u64) as usize];
        let mut peer = Peer {
            raw: Raw::connect(to, from, buffer),
            id,
            dialect,
            write_max: *rng.choose(&[usize::MAX, usize::MAX, usize::MAX, 1000, 50]),
            read_max: *rng.choose(&[usize::MAX, usize::MAX, usize::MAX, 1000, 50, 0]),
            is_fragmented: false,
            is_cut: false,
            is_narrow: buffer.is_some(),
            is_served: false,
            is_registered: false,
            room: path.split(['/', '?']).nth(2).unwrap_or(""),
            known: vec!["00000000-0000-4000-8000-000000000000".to_owned()],
            flood: Vec::new(),
        };
        peer.raw.answers = rng.below(4) > 0;
        let head = self.head(&peer, path, is_plain);
        let cut = match self.rng.below(12) {
            0 => self.rng.below(head.len() as u64) as usize,
            _ => head.len(),
        };
        peer.raw.push(&head[..cut]);
        // Frames may arrive in the same segment as the head.
        for _ in 0..self.rng.below(3) {
            let bytes = self.bytes(&mut peer);
            peer.raw.push(&bytes);
        }
        Some(peer)
    }

    /// Returns a request head, which may be invalid.
    fn head(&mut self, peer: &Peer, path: &str, is_plain: bool) -> Vec<u8> {
        let mut path = path.to_owned();
        if peer.dialect == ProtocolId::PeerJs {
            let token = match self.config.token_secrets {
                Some(_) => self.token(peer),
                None => (*self.rng.choose(&["t1", "t2", "t3", ""])).to_owned(),
            };
            let key = *self.rng.choose(&["peerjs", "peerjs", "peerjs", "k2", ""]);
            path = format!("{path}?key={key}&id={}&token={token}", peer.id);
        } else if self.config.token_secrets.is_some()
            && peer.dialect != ProtocolId::Ayame
            && self.rng.below(15) > 0
        {
            let separator = if path.contains('?') { '&' } else { '?' };
            path = format!("{path}{separator}token={}", self.token(peer));
        }
        if is_plain {
            return format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
        }
        let head = REQUEST.replace("/ws/tea", &path);
        let head = match self.rng.below(40) {
            0 => head.replace("\r\n", "\n"),
            1 => head.replace("Host: h", &format!("Host: h\r\nX: {}", "x".repeat(33 * KIB))),
            2 => head.replace("Version: 13", "Version: 12"),
            3 => head.replace("Host: h", "Host: h\r\nOrigin: http://elsewhere\u{1b}[2J"),
            4 => head.replace("GET", "\u{16}\u{3}\u{1}"),
            5 => head.replace("/ws/tea", "/ws/pair"),
            _ => head,
        };
        head.into_bytes()
    }

    /// Returns a token, which is usually valid. No token is for the room of the pair.
    fn token(&mut self, peer: &Peer) -> String {
        // Ayame and y-webrtc name their rooms in messages.
        let own = match peer.dialect {
            ProtocolId::Ayame | ProtocolId::YWebrtc => "tea",
            ProtocolId::PeerJs => "peerjs",
            _ => peer.room,
        };
        let room = Some(*self.rng.choose(&[own, own, own, own, own, own, "te*", "*", ""]));
        match self.rng.below(12) {
            0 => token(OTHER_SECRET, 3600, room, None),
            1 => token(SECRET, -3600, room, None),
            2 | 3 => token(SECRET, 3600, room, Some(peer.id)),
            4 => token(SECRET, 3600, room, Some(*self.rng.choose(&IDS))),
            _ => token(SECRET, 3600, room, None),
        }
    }

    /// Runs one random action of a connection. Returns it if it is still open.
    fn run_action(&mut self, mut peer: Peer) -> Option<Peer> {
        let is_behind = peer.raw.unwritten() > UNWRITTEN_MAX;
        match self.rng.below(40) {
            0 if self.rng.below(3) > 0 => {}
            0 => match self.rng.below(3) {
                0 => peer.raw.reset(),
                1 => peer.raw.half_close(),
                _ => peer.raw.end(),
            },
            3 => peer.read_max = *self.rng.choose(&[usize::MAX, 1000, 50, 0]),
            4 => peer.write_max = *self.rng.choose(&[usize::MAX, 1000, 50, 1]),
            5 if !is_behind => {
                // More than the burst of most limits.
                let bytes = self.bytes(&mut peer);
                let times = (20_000 / bytes.len().max(20)).min(250);
                peer.raw.push(&bytes.repeat(times));
            }
            6 => peer.flood = self.bytes(&mut peer),
            7 | 8 => peer.flood = Vec::new(),
            9..12 => {}
            _ if is_behind => {}
            _ => {
                let bytes = self.bytes(&mut peer);
                peer.raw.push(&bytes);
            }
        }
        Some(peer).filter(|peer| peer.raw.is_connected())
    }

    /// Returns one message or frame.
    fn bytes(&mut self, peer: &mut Peer) -> Vec<u8> {
        if self.rng.below(60) == 0 {
            peer.is_cut = true;
            return self.fatal_bytes();
        }
        let size = *self.rng.choose(&[0, 10, 100, 125]);
        match self.rng.below(30) {
            0 => frame(PING, &vec![7; size]),
            1 => frame(PONG, &vec![7; size]),
            2 => {
                // A fragmented message with a ping between its fragments. It may stay incomplete.
                let whole = self.message(peer);
                let cut = self.rng.below(whole.len() as u64 + 1) as usize;
                let first = if peer.is_fragmented { 0x00 } else { 0x01 };
                let last = if self.rng.below(4) == 0 { 0x00 } else { 0x80 };
                peer.is_fragmented = last == 0x00;
                let (begin, end) = whole.as_bytes().split_at(cut);
                [frame(first, begin), frame(PING, b"between"), frame(last, end)].concat()
            }
            3 if peer.is_fragmented => frame(0x00, b"").repeat(self.rng.below(100) as usize),
            _ if peer.is_fragmented => {
                peer.is_fragmented = false;
                frame(0x80, b"}")
            }
            _ => {
                let message = self.message(peer);
                let mask = if message.len() < 1000 { frame } else { plain_frame };
                mask(TEXT, message.as_bytes())
            }
        }
    }

    /// Returns bytes for which the server closes the connection, or which begin a frame that swallows later bytes.
    fn fatal_bytes(&mut self) -> Vec<u8> {
        let whole = plain_frame(TEXT, &[b' '; 500]);
        match self.rng.below(5) {
            0 => frame(0x82, &[0xff; 100]),
            1 => frame(TEXT, &[0xff, 0xfe]),
            2 => frame(CLOSE, &close(*self.rng.choose(&[1000, 1001, 4000, 1005, 999]), "")),
            3 => whole[..self.rng.below(whole.len() as u64) as usize].to_vec(),
            _ => self.invalid_frame(),
        }
    }

    fn invalid_frame(&mut self) -> Vec<u8> {
        let broken: [&[u8]; 6] = [
            b"\x81\x05hello",
            b"\xf1\x80\0\0\0\0",
            b"\x83\x80\0\0\0\0",
            b"\x89\xfe\x00\xff\0\0\0\0",
            b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
            b"GET / HTTP/1.1\r\n\r\n",
        ];
        self.rng.choose(&broken).to_vec()
    }

    fn message(&mut self, peer: &mut Peer) -> String {
        let text = match peer.dialect {
            ProtocolId::Noroshi | ProtocolId::Http => self.noroshi_message(peer.id),
            ProtocolId::Ayame => self.ayame_message(peer),
            ProtocolId::Matchbox => self.matchbox_message(&peer.known),
            ProtocolId::PeerJs => self.peerjs_message(),
            ProtocolId::YWebrtc => self.ywebrtc_message(),
            ProtocolId::GStreamer => self.gstreamer_message(&peer.known),
        };
        let is_fatal = peer.dialect == ProtocolId::Ayame;
        match self.rng.below(if is_fatal { 250 } else { 25 }) {
            0 => text[..text.floor_char_boundary(text.len() / 2)].to_owned(),
            1 => (*self.rng.choose(&["", "{", "null", "[]", "{\"type\":\"x\"}", "{\"type\":1}"])).to_owned(),
            _ => text,
        }
    }

    /// Returns the maximum content length of a message, which rarely exceeds the limit.
    fn content_max(&mut self) -> usize {
        let max = self.config.message_bytes_max;
        if self.rng.below(50) == 0 { 2 * max } else { max - 200 }
    }

    fn long(&mut self) -> String {
        let sizes: &[usize] = if self.rng.below(10) == 0 { &[5000, 40_000] } else { &[1, 10, 100, 900] };
        let max = self.content_max();
        "x".repeat((*self.rng.choose(sizes)).min(max))
    }

    fn noroshi_message(&mut self, own: &'static str) -> String {
        let kinds = [
            "connect",
            "connect",
            "offer",
            "offer",
            "answer",
            "answer",
            "candidateAdd",
            "candidateAdd",
            "join",
            "leave",
            "ping",
        ];
        let id = match self.rng.below(20) {
            0 => *self.rng.choose(&IDS),
            1 => "\u{1}\u{2}",
            _ => own,
        };
        let mut message = json!({"type": self.rng.choose(&kinds), "id": id});
        if self.rng.below(3) == 0 {
            message["target_id"] = json!(self.rng.choose(&IDS));
        }
        match self.rng.below(3) {
            0 => {
                let candidate = self.long();
                let count =
                    (*self.rng.choose(&[0, 1, 3, 64, 65])).min(self.content_max() / (candidate.len() + 3));
                message["candidates"] = json!(vec![candidate; count]);
            }
            1 => message["candidate"] = json!(self.long()),
            _ => message["sdp"] = json!({"type": "offer", "sdp": self.long()}),
        }
        message.to_string()
    }

    fn ayame_message(&mut self, peer: &mut Peer) -> String {
        let key = if self.config.token_secrets.is_some() { self.token(peer) } else { String::new() };
        let is_alone = self.rng.below(6) == 0;
        let register = json!({"type": "register", "roomId": "tea", "clientId": peer.id, "key": key, "standalone": is_alone});
        if !mem::replace(&mut peer.is_registered, true) {
            return register.to_string();
        }
        let message = match self.rng.below(60) {
            0 => register,
            1 => json!({"type": "connected"}),
            2..40 => json!({"type": "offer", "sdp": self.long()}),
            40..55 => json!({"type": "candidate", "ice": self.long()}),
            _ => json!({"type": "pong"}),
        };
        message.to_string()
    }

    fn matchbox_message(&mut self, known: &[String]) -> String {
        if self.rng.below(5) == 0 {
            return "\"KeepAlive\"".to_owned();
        }
        let data = self.long();
        let receiver = self.rng.choose(known);
        json!({"Signal": {"receiver": receiver, "data": data}}).to_string()
    }

    fn peerjs_message(&mut self) -> String {
        let kinds = ["OFFER", "OFFER", "ANSWER", "CANDIDATE", "CANDIDATE", "CANDIDATE", "LEAVE", "HEARTBEAT"];
        let kind = *self.rng.choose(&kinds);
        if self.rng.below(100) == 0 {
            return json!({"type": "LEAVE"}).to_string();
        }
        let to = *self.rng.choose(&["a", "b", "c", "d", "e", "absent", "\u{1}\n"]);
        json!({"type": kind, "payload": self.long(), "dst": to}).to_string()
    }

    fn ywebrtc_message(&mut self) -> String {
        let topics = ["tea", "tea", "milk"];
        let [first, second] = [(); 2].map(|()| *self.rng.choose(&topics));
        let message = match self.rng.below(20) {
            0 => json!({"type": "ping"}),
            1 => json!({"type": "unsubscribe", "topics": [first]}),
            2..7 => json!({"type": "subscribe", "topics": [first, second]}),
            7 => {
                let many: Vec<String> = (0..self.content_max() / 10).map(|topic| topic.to_string()).collect();
                json!({"type": "subscribe", "topics": many})
            }
            _ => json!({"type": "publish", "topic": first, "data": self.long()}),
        };
        message.to_string()
    }

    fn gstreamer_message(&mut self, known: &[String]) -> String {
        // The last ones are usually those of peers and sessions that are there.
        let recent = &known[known.len().saturating_sub(8)..];
        let id = self.rng.choose(recent).clone();
        let message = match self.rng.below(24) {
            0 => json!({"type": "setProtocolVersion", "version": "v1_1"}),
            1 => json!({"type": "list"}),
            2 => json!({"type": "listConsumers"}),
            3..9 => {
                let roles: [&[&str]; 5] =
                    [&[], &["producer"], &["consumer"], &["listener"], &["listener", "producer"]];
                let roles = *self.rng.choose(&roles);
                json!({"type": "setPeerStatus", "roles": roles, "meta": self.long()})
            }
            9..15 => json!({"type": "startSession", "peerId": id}),
            15 => json!({"type": "startSession", "peerId": id, "offer": self.long()}),
            16 => json!({"type": "endSession", "sessionId": id}),
            17 => json!({"type": "endSessionV1_1", "sessionId": id, "error": "x"}),
            18..21 => {
                json!({"type": "peer", "sessionId": id, "ice": {"candidate": self.long(), "sdpMLineIndex": 0}})
            }
            _ => {
                let kind = *self.rng.choose(&["offer", "answer"]);
                json!({"type": "peer", "sessionId": id, "sdp": {"type": kind, "sdp": self.long()}})
            }
        };
        message.to_string()
    }

    /// Lets all connections write and read as much as one step allows.
    fn run_peers(&mut self) {
        for place in &mut self.peers {
            let Some(peer) = place else { continue };
            if peer.raw.unwritten() == 0 {
                peer.raw.push(&peer.flood);
            }
            peer.raw.write(peer.write_max);
            for (first, payload) in peer.raw.read(peer.read_max) {
                if first == PONG {
                    peer.is_served |= payload == LAST_PING;
                    continue;
                }
                assert_eq!(first, TEXT);
                let message: Value = serde_json::from_slice(&payload).expect("the server sends JSON");
                match peer.dialect {
                    ProtocolId::Noroshi | ProtocolId::Ayame | ProtocolId::PeerJs | ProtocolId::YWebrtc => {
                        assert!(message["type"].is_string(), "{message}")
                    }
                    ProtocolId::Matchbox => {
                        let id = message["IdAssigned"].as_str().or(message["NewPeer"].as_str());
                        peer.known.extend(id.map(str::to_owned));
                    }
                    ProtocolId::GStreamer => {
                        assert!(message["type"].is_string(), "{message}");
                        let ids = [&message["peerId"], &message["sessionId"]];
                        peer.known.extend(ids.iter().filter_map(|id| id.as_str()).map(str::to_owned));
                    }
                    ProtocolId::Http => panic!("a response was expected: {message}"),
                }
            }
            // It gets a Close frame only as the answer to its own.
            let may_get_close_frame = peer.dialect != ProtocolId::GStreamer || peer.is_cut;
            assert!(may_get_close_frame || peer.raw.close_code.is_none(), "{:?}", peer.raw.close_code);
            let statuses = [101, 200, 304, 400, 401, 403, 404, 405, 408, 426, 429, 431, 503];
            let status = peer.raw.status();
            assert!(status.is_none_or(|status| statuses.contains(&status)), "{:?}", peer.raw.head);
            if !peer.raw.is_connected() {
                *place = None;
            }
        }
    }

    // ---- The operator and the clock ----

    /// Changes the secret file and reloads it. An invalid file changes nothing.
    fn reload(&mut self) {
        let both = [OTHER_SECRET, b"\n# the one before\n", SECRET].concat();
        let files: [&[u8]; 4] = [SECRET, b"short", b"", &both];
        fs::write(&self.secret_file, self.rng.choose(&files)).unwrap();
        self.server.reload();
    }

    /// Advances the clock, usually by little. The pair exchanges candidates every second.
    fn advance(&mut self) {
        let by = match self.rng.below(40) {
            0 => 1000 * (1 + self.rng.below(31)),
            1..10 => self.rng.below(1000),
            _ => 0,
        };
        let by = Duration::from_millis(by);
        self.server.advance(by);
        self.since_exchange += by;
        if let Some(undisturbed_time) = &mut self.undisturbed_time {
            *undisturbed_time = undisturbed_time.saturating_sub(by);
        }
        if self.since_exchange >= Duration::from_secs(1) {
            self.since_exchange = Duration::ZERO;
            self.exchange();
        }
    }

    // ---- The pair ----

    fn pair_must_be_undisturbed(&self) -> bool {
        self.undisturbed_time.is_none_or(|undisturbed_time| !undisturbed_time.is_zero())
    }

    /// Asserts that the pair has received nothing unexpected.
    fn read_pair(&mut self) {
        let must_be_calm = self.pair_must_be_undisturbed();
        for (raw, id) in self.pair.iter_mut().zip(PAIR) {
            let texts = raw.texts();
            if must_be_calm {
                assert_eq!(texts, [""; 0], "{id} is disturbed");
                assert!(raw.is_connected(), "{id} is disconnected");
                assert_eq!(raw.close_code, None);
            } else {
                assert!(matches!(raw.close_code, None | Some(1001)));
            }
        }
    }

    /// Exchanges a candidate in each direction within a bounded number of iterations.
    fn exchange(&mut self) {
        if !self.pair_must_be_undisturbed() {
            for _ in 0..PAIR_ITERATIONS_MAX {
                self.run_iteration();
            }
            return self.read_pair();
        }
        self.exchanged += 1;
        let mut received: [Vec<Value>; 2] = Default::default();
        for i in 0..2 {
            let id = PAIR[i];
            let target = PAIR[1 - i];
            let message =
                json!({"type": "candidateAdd", "id": id, "target_id": target, "candidate": self.exchanged});
            self.pair[i].send(&text(&message.to_string()));
        }
        let mut iterations = 0;
        while received.iter().any(Vec::is_empty) {
            assert!(
                iterations < PAIR_ITERATIONS_MAX,
                "a candidate does not arrive within {iterations} iterations: {received:?}"
            );
            iterations += 1;
            self.run_iteration();
            for (received, raw) in received.iter_mut().zip(&mut self.pair) {
                received.extend(raw.texts().iter().map(|text| serde_json::from_str::<Value>(text).unwrap()));
            }
        }
        for i in 0..2 {
            let expected =
                json!({"type": "candidate", "candidate": self.exchanged.to_string(), "id": PAIR[1 - i]});
            assert_eq!(received[i], [expected]);
        }
        self.iterations_max = self.iterations_max.max(iterations);
        // Replies to the server's pings arrive before the clock advances again.
        self.run_iteration();
    }

    // ---- The end ----

    /// Makes all peers behave well. Each must be served again or closed: none may wait forever.
    fn assert_all_peers_are_served(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            peer.flood.clear();
            peer.read_max = usize::MAX;
            peer.write_max = usize::MAX;
            peer.raw.answers = true;
        }
        let last_ping = frame(PING, LAST_PING);
        for second in 0..RECOVERY_SECONDS {
            for peer in self.peers.iter_mut().flatten() {
                // Probes and rate violations end before that.
                if second >= RECOVERY_SECONDS / 2 && !peer.is_served {
                    peer.raw.push(&last_ping);
                }
            }
            self.server.advance(Duration::from_secs(1));
            self.exchange();
            for _ in 0..PAIR_ITERATIONS_MAX {
                self.run_iteration();
                self.run_peers();
            }
        }
        for peer in self.peers.iter().flatten() {
            let is_open = peer.raw.status() == Some(101) && peer.raw.close_code.is_none();
            let is_exempt = peer.is_cut || peer.is_narrow;
            assert!(peer.is_served || is_exempt || !is_open, "a {:?} client is not served", peer.dialect);
        }
    }

    /// Closes all connections in random order. Nothing must be left.
    fn finish(mut self) -> usize {
        let mut last: Vec<Raw> = self.peers.drain(..).flatten().map(|peer| peer.raw).collect();
        last.extend(self.pair);
        for mut raw in last {
            match self.rng.below(3) {
                0 => raw.reset(),
                _ => raw.end(),
            }
            if self.rng.below(3) == 0 {
                run_iteration(&mut self.server);
            }
        }
        let mut idle_turns = 0;
        for _ in 0..2000 {
            run_iteration(&mut self.server);
            idle_turns = if self.server.was_idle() { idle_turns + 1 } else { 0 };
            if idle_turns >= 3 && self.server.sessions() == 0 {
                break;
            }
            if idle_turns >= 3 {
                self.server.advance(Duration::from_secs(1));
            }
        }
        assert_eq!(self.server.sessions(), 0, "connections are left");
        // PeerJS holds messages of senders that have left.
        self.server.advance(HOLD_TIME);
        for _ in 0..3 {
            run_iteration(&mut self.server);
        }
        assert_eq!(
            remaining_state(self.server.dispatcher()),
            (0, 0, None),
            "peers, rooms or timers are left"
        );
        let shared = self.server.shared();
        assert_eq!(shared.budget.reserved(), 0, "memory is reserved without connections");
        assert_eq!(shared.budget.used(), BASE_BYTES, "memory is counted without connections");
        assert_eq!(self.server.addresses_counted(), 0, "connections are counted for addresses without any");
        let _ = fs::remove_file(&self.secret_file);
        self.iterations_max
    }
}

#[test]
fn random_peers_on_sockets_disturb_no_other_peer_and_leave_nothing() {
    static LOGGER: Once = Once::new();
    LOGGER.call_once(|| {
        log::set_logger(&LineCheck).unwrap();
        log::set_max_level(LevelFilter::Debug);
    });
    let steps = environment("TEST_STEPS").unwrap_or(STEPS);
    if let Some(seed) = environment("TEST_SEED") {
        println!("seed {seed}");
        World::new(seed).run(steps);
        return;
    }
    let end = Instant::now() + Duration::from_secs(environment("TEST_SECONDS").unwrap_or(SECONDS));
    // Each run of the test uses different seeds.
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() * 1_000_000;
    let mut seeds = 0;
    let mut iterations_max = 0;
    while seeds == 0 || Instant::now() < end {
        println!("seed {}", first + seeds);
        iterations_max = iterations_max.max(World::new(first + seeds).run(steps));
        seeds += 1;
    }
    println!("{seeds} seeds; a candidate of the pair took {iterations_max} iterations at most");
}
