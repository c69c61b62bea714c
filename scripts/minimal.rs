//! A WebRTC signaling server in one file. Start here: `src/` has the same loop and the same rules, and all that a server
//! on the internet needs besides.
//!
//! Two browsers that want to talk to each other directly must first exchange descriptions of themselves (an *offer*
//! and an *answer*, both SDP) and the addresses at which they may be reachable (*candidates*). This server relays them:
//!
//! ```text
//! A                             server                              B
//! │ {"type":"connect","id":"A"} → │                                 │
//! │           ← {"type":"offer"}  │   Nobody offers yet: A shall.   │
//! │   {"type":"offer","sdp":…}  → │   The offer stands.             │
//! │                               │ ← {"type":"connect","id":"B"}   │
//! │                               │   {"type":"offer","sdp":…}    → │
//! │                               │ ← {"type":"answer","sdp":…}     │
//! │  ← {"type":"answer","sdp":…}  │   A and B are a pair.           │
//! │   {"type":"candidateAdd",…} → │   {"type":"candidate",…}      → │
//! │    ← {"type":"candidate",…}   │ ← {"type":"candidateAdd",…}     │
//! ```
//!
//! A peer that connects while another one is asked for an offer waits in a queue. When a pair is complete, the next
//! peer in the queue is asked. The server never looks into an SDP or a candidate.
//!
//! One thread serves all connections. Each iteration of the loop in `Server::run` waits for readiness events of sockets,
//! reads and handles messages, flushes what these made it send, removes closed sessions, and accepts connections.
//! No call blocks but the one that waits. Whatever a peer sends, only its own session is closed.
//!
//! What is missing here and in `src/`: rooms, heartbeats, rate limits, limits on the number of connections, timeouts for
//! peers that are asked for an offer and send none, closing codes, metrics, and HTTP other than the upgrade.
//!
//! ```text
//! cargo run --release --example minimal -- 127.0.0.1:8080
//! cargo run --release --example load -- --url ws://127.0.0.1:8080/ws
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, mem};

use log::{LevelFilter, debug, info, warn};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use simple_logger::SimpleLogger;
use slab::Slab;
use tungstenite::handshake::server::{NoCallback, ServerHandshake};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message, WebSocket};

const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";

/// Maximum size of an incoming message, in bytes. An offer with video has 5 to 10 KB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of the queue of outgoing messages of one session, in bytes. Two of the largest messages fit, in each of
/// which every character is escaped.
const QUEUE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Maximum size of the candidates that are stored for one offer, in bytes.
const STORED_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of an id, in bytes.
const ID_BYTES_MAX: usize = 128;
/// Maximum time from accept to the end of the opening handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Maximum size of the request that begins the handshake, in bytes.
const REQUEST_BYTES_MAX: usize = 32 * 1024;
/// Bytes that one session may read in one iteration, so that a fast sender does not delay the others.
const READ_BYTES_PER_ITERATION: usize = 16 * 1024;
/// Connections that are accepted in one iteration.
const ACCEPTS_PER_ITERATION: usize = 256;
/// Interval at which handshake deadlines are checked and accepting is retried after an error.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

const LISTENER: Token = Token(usize::MAX);

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("minimal: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    SimpleLogger::new().with_level(LevelFilter::Info).env().init()?;
    let argument = env::args_os().nth(1).unwrap_or(DEFAULT_ADDRESS.into());
    let argument = argument.to_string_lossy();
    let address = argument.parse().map_err(|_| format!("expected ADDR:PORT, got {argument:?}"))?;
    let server = Server::bind(address)?;
    info!("listening on ws://{}/ws", server.listener.local_addr()?);
    Ok(server.run()?)
}

// ---- Sessions and the room ----

/// The index of a session in the slab. The slab reuses keys at once: a session is removed after all that refers to it.
type Key = usize;

struct Session {
    connection: Connection,
    /// Set by the first valid message.
    id: Option<String>,
    state: State,
    /// Candidates for the next answer to this peer's offer: JSON texts, joined by `|`.
    candidates: String,
}

enum Connection {
    /// The opening handshake is not complete (RFC 6455, section 4).
    Opening { handshake: MidHandshake<ServerHandshake<Stream, NoCallback>>, deadline: Instant },
    /// Messages can be exchanged.
    Open(WebSocket<Stream>),
    /// The socket is closed. The session is removed at the end of the iteration.
    Closed,
}

/// How far a peer is with finding a partner.
enum State {
    /// The peer has not connected yet, or its partner left.
    Idle,
    /// The peer is in the queue.
    Waiting,
    /// The peer was asked for an offer, or its offer stands.
    Offerer,
    /// The peer was handed the standing offer and may answer it.
    Handed,
    /// The offer that the peer was handed has been answered by another peer, or replaced.
    TooLate,
    /// The peer has this partner.
    Paired(Key),
}

/// What all registered peers have in common.
#[derive(Default)]
struct Room {
    ids: HashMap<String, Key>,
    /// The queue of peers that wait for their turn.
    waiting: VecDeque<Key>,
    /// The only peer in [`State::Offerer`]. While there is none, nobody waits.
    offerer: Option<Key>,
    /// The offer of the offerer. It stands until one peer answers it.
    offer: Option<Offer>,
}

struct Offer {
    message: Value,
    /// The peers in [`State::Handed`].
    holders: Vec<Key>,
}

// ---- The loop ----

struct Server {
    poll: Poll,
    listener: TcpListener,
    /// Whether the listener may have further connections.
    may_accept: bool,
    sessions: Slab<Session>,
    /// Sessions that may have input.
    readable: BTreeSet<Key>,
    /// Sessions that may have output to flush.
    dirty: BTreeSet<Key>,
    /// Sessions whose connection was closed in this iteration.
    closed: Vec<Key>,
    next_tick: Instant,
    room: Room,
}

impl Server {
    fn bind(address: SocketAddr) -> io::Result<Server> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Server {
            poll,
            listener,
            may_accept: true,
            sessions: Slab::new(),
            readable: BTreeSet::new(),
            dirty: BTreeSet::new(),
            closed: Vec::new(),
            next_tick: Instant::now(),
            room: Room::default(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            self.wait(&mut events)?;
            for event in &events {
                match event.token() {
                    LISTENER => self.may_accept = true,
                    Token(key) => {
                        self.readable.insert(key);
                        self.dirty.insert(key);
                    }
                }
            }
            for key in mem::take(&mut self.readable) {
                self.continue_handshake(key);
                self.receive_messages(key);
            }
            self.tick();
            // Either leads to the other: the other peers are told of a removal, and a flush can fail.
            while !self.dirty.is_empty() || !self.closed.is_empty() {
                self.flush_dirty_sessions();
                self.remove_closed_sessions();
            }
            // Last, so that no event of this iteration reaches a new session under a reused key.
            self.accept_connections();
        }
    }

    /// Waits for events, unless there is work left that no event will report: mio is edge-triggered.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.may_accept || !self.readable.is_empty() {
            Duration::ZERO
        } else {
            self.next_tick.saturating_duration_since(Instant::now())
        };
        match self.poll.poll(events, Some(timeout)) {
            // The process was stopped and continued, for example.
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    fn accept_connections(&mut self) {
        let mut budget = ACCEPTS_PER_ITERATION;
        while self.may_accept && budget > 0 {
            budget -= 1;
            match self.listener.accept() {
                Ok((stream, _)) => self.add_session(stream),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.may_accept = false,
                Err(error) => {
                    // Most likely no file descriptor is left. The next tick tries again.
                    warn!("cannot accept a connection: {error}");
                    self.may_accept = false;
                }
            }
        }
    }

    fn add_session(&mut self, mut stream: TcpStream) {
        let entry = self.sessions.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(entry.key()), interest) {
            warn!("cannot register a connection: {error}");
            return;
        }
        // Small messages are sent without delay. If this fails, so will the next read.
        let _ = stream.set_nodelay(true);
        let stream = Stream { stream, read_budget: REQUEST_BYTES_MAX };
        let config = WebSocketConfig::default()
            .read_buffer_size(4 * 1024)
            .write_buffer_size(16 * 1024)
            .max_write_buffer_size(QUEUE_BYTES_MAX)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let handshake = ServerHandshake::start(stream, NoCallback, Some(config));
        let connection = Connection::Opening { handshake, deadline: Instant::now() + HANDSHAKE_TIME_MAX };
        entry.insert(Session { connection, id: None, state: State::Idle, candidates: String::new() });
    }

    fn continue_handshake(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.connection = match mem::replace(&mut session.connection, Connection::Closed) {
            Connection::Opening { handshake, deadline } => match handshake.handshake() {
                Ok(socket) => Connection::Open(socket),
                Err(HandshakeError::Interrupted(handshake)) => Connection::Opening { handshake, deadline },
                Err(HandshakeError::Failure(error)) => return self.close(key, &error),
            },
            other => other,
        };
    }

    fn receive_messages(&mut self, key: Key) {
        let Some(socket) = self.socket(key) else { return };
        socket.get_mut().read_budget = READ_BYTES_PER_ITERATION;
        while let Some(socket) = self.socket(key) {
            match socket.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => self.handle_message(key, &message),
                Ok(Message::Close(_)) => {
                    // The reply is in tungstenite's buffer, as are all replies to pings.
                    let _ = socket.flush();
                    self.close(key, &"the peer said goodbye");
                }
                Ok(_) => {}
                Err(error) if is_would_block(&error) => {
                    if socket.get_ref().read_budget == 0 {
                        self.readable.insert(key);
                    }
                    return;
                }
                // The message is too large or the frame is invalid, or the connection is lost.
                Err(error) => self.close(key, &error),
            }
        }
    }

    /// Adds a message to the session's queue. It is sent at the end of the iteration.
    fn send(&mut self, to: Key, message: &Value) {
        let Some(socket) = self.socket(to) else { return };
        match socket.write(Message::text(message.to_string())) {
            Ok(()) => _ = self.dirty.insert(to),
            // The message is in the queue. An event follows when the socket is writable again.
            Err(error) if is_would_block(&error) => {}
            // The queue is full: the peer does not read, or not fast enough.
            Err(error) => self.close(to, &error),
        }
    }

    fn flush_dirty_sessions(&mut self) {
        for key in mem::take(&mut self.dirty) {
            let Some(socket) = self.socket(key) else { continue };
            match socket.flush() {
                Err(error) if !is_would_block(&error) => self.close(key, &error),
                _ => {}
            }
        }
    }

    /// Closes the socket. The session remains until the end of the iteration, so that its key stays valid.
    fn close(&mut self, key: Key, reason: &dyn Display) {
        debug!("session {key}: {reason}");
        self.sessions[key].connection = Connection::Closed;
        self.closed.push(key);
    }

    fn remove_closed_sessions(&mut self) {
        while let Some(key) = self.closed.pop() {
            self.leave(key);
            if let Some(id) = self.sessions.remove(key).id {
                self.room.ids.remove(&id);
            }
        }
    }

    /// Closes sessions whose handshake takes too long, once per interval.
    fn tick(&mut self) {
        let now = Instant::now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK_INTERVAL;
        self.may_accept = true;
        let is_late = |session: &Session| match session.connection {
            Connection::Opening { deadline, .. } => deadline <= now,
            _ => false,
        };
        let late = self.sessions.iter().filter(|(_, session)| is_late(session));
        for key in late.map(|(key, _)| key).collect::<Vec<_>>() {
            self.close(key, &"the handshake takes too long");
        }
    }

    /// Returns the WebSocket of a session, if it is open.
    fn socket(&mut self, key: Key) -> Option<&mut WebSocket<Stream>> {
        match &mut self.sessions.get_mut(key)?.connection {
            Connection::Open(socket) => Some(socket),
            _ => None,
        }
    }
}

fn is_would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}

/// A TCP stream of which only so much is read in one iteration. Counting messages would not do: tungstenite reads empty
/// fragments of a message for as long as they arrive.
struct Stream {
    stream: TcpStream,
    read_budget: usize,
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read_budget == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(self.read_budget);
        let count = self.stream.read(&mut buffer[..length])?;
        self.read_budget -= count;
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

// ---- Messages ----

/// A message from a client. SDPs and candidates are JSON texts, exactly as the client wrote them.
struct Request<'a> {
    id: String,
    target_id: Option<String>,
    body: Body<'a>,
}

enum Body<'a> {
    Connect,
    Offer(&'a str),
    Answer(&'a str),
    Candidate(&'a str),
    Leave,
}

/// The reason why a message is refused: a code for programs and a sentence for people.
struct Refusal(&'static str, &'static str);

impl Request<'_> {
    fn parse(text: &str) -> Result<Request<'_>, Refusal> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text)
            .map_err(|_| Refusal("bad_json", "the message is not a JSON object"))?;
        // A missing field is the same as null.
        let json = |name| fields.get(name).map_or("null", |value| value.get());
        let string = |name, problem| {
            let value: Result<Option<String>, _> = serde_json::from_str(json(name));
            value.map_err(|_| Refusal("bad_message", problem))
        };
        let body = match string("type", "type is not a string")?.as_deref() {
            Some("connect") => Body::Connect,
            Some("offer") => Body::Offer(json("sdp")),
            Some("answer") => Body::Answer(json("sdp")),
            Some("candidateAdd") => Body::Candidate(json("candidate")),
            Some("leave") => Body::Leave,
            Some(_) => return Err(Refusal("unknown_type", "this server does not know the type")),
            None => return Err(Refusal("bad_message", "type is missing")),
        };
        let id = string("id", "id is not a string")?.unwrap_or_default();
        if id.is_empty() || id.len() > ID_BYTES_MAX || id.contains(|c: char| c.is_ascii_control()) {
            return Err(Refusal("bad_message", "id is not 1 to 128 bytes without control characters"));
        }
        let target_id = string("target_id", "target_id is not a string")?.filter(|id| !id.is_empty());
        Ok(Request { id, target_id, body })
    }
}

// ---- The rules of pairing ----

impl Server {
    fn handle_message(&mut self, sender: Key, message: &Message) {
        let not_utf8 = |_| Refusal("bad_json", "the message is not UTF-8");
        let request = match message.to_text().map_err(not_utf8).and_then(Request::parse) {
            Ok(request) => request,
            Err(refusal) => return self.send_error(sender, &refusal, None),
        };
        if let Err(refusal) = self.handle_request(sender, &request) {
            self.send_error(sender, &refusal, request.target_id.as_deref());
        }
    }

    fn handle_request(&mut self, sender: Key, request: &Request) -> Result<(), Refusal> {
        self.register(sender, &request.id)?;
        match request.body {
            Body::Connect => self.connect(sender),
            Body::Offer(sdp) => self.handle_offer(sender, request, sdp)?,
            Body::Answer(sdp) => self.handle_answer(sender, request, sdp)?,
            Body::Candidate(candidate) => self.handle_candidate(sender, request, candidate)?,
            Body::Leave => self.leave(sender),
        }
        Ok(())
    }

    /// Binds an id and a connection to each other, for as long as the connection lasts.
    fn register(&mut self, key: Key, id: &str) -> Result<(), Refusal> {
        match &self.sessions[key].id {
            Some(own) if own == id => return Ok(()),
            Some(_) => return Err(Refusal("id_mismatch", "this connection has another id")),
            None => {}
        }
        if self.room.ids.contains_key(id) {
            return Err(Refusal("id_taken", "another connection has this id"));
        }
        self.room.ids.insert(id.to_owned(), key);
        self.sessions[key].id = Some(id.to_owned());
        Ok(())
    }

    fn connect(&mut self, peer: Key) {
        if !matches!(self.sessions[peer].state, State::Idle | State::TooLate) {
            return;
        }
        if self.room.offer.is_some() && self.room.waiting.is_empty() {
            self.hand_offer(peer);
        } else {
            self.sessions[peer].state = State::Waiting;
            self.room.waiting.push_back(peer);
            self.serve_queue();
        }
    }

    /// Serves the queue while its first peer can be asked for an offer or handed one that nobody else may answer.
    fn serve_queue(&mut self) {
        loop {
            let has_unheld_offer = self.room.offer.as_ref().is_some_and(|offer| offer.holders.is_empty());
            if self.room.offerer.is_some() && !has_unheld_offer {
                return;
            }
            let Some(first) = self.room.waiting.pop_front() else { return };
            if has_unheld_offer {
                self.hand_offer(first);
            } else {
                self.room.offerer = Some(first);
                self.sessions[first].state = State::Offerer;
                self.send(first, &json!({"type": "offer"}));
            }
        }
    }

    fn hand_offer(&mut self, to: Key) {
        let Some(offer) = &mut self.room.offer else { return };
        offer.holders.push(to);
        let message = offer.message.clone();
        self.sessions[to].state = State::Handed;
        self.send(to, &message);
    }

    /// Relays an offer to the partner or to the peer that it names, or publishes it.
    fn handle_offer(&mut self, sender: Key, request: &Request, sdp: &str) -> Result<(), Refusal> {
        let to = match self.recipient(sender, request)? {
            // A peer that was handed an offer may only answer it.
            Some(to) if !matches!(self.sessions[sender].state, State::Handed) => to,
            _ => return self.publish_offer(sender, &request.id, sdp),
        };
        if let State::TooLate = self.sessions[to].state {
            // Now there is an offer again that this peer can answer.
            self.sessions[to].state = State::Idle;
        }
        self.send(to, &json!({"type": "offer", "sdp": sdp, "target_id": request.id, "id": request.id}));
        Ok(())
    }

    /// Lets an offer stand for any peer that connects. It replaces an earlier offer of the same peer.
    fn publish_offer(&mut self, sender: Key, id: &str, sdp: &str) -> Result<(), Refusal> {
        if self.room.offerer.is_some_and(|offerer| offerer != sender) {
            return Err(Refusal("not_offerer", "another peer is the offerer; connect and wait to be asked"));
        }
        if self.room.offer.is_some() {
            self.take_offer_down();
            self.sessions[sender].candidates.clear();
        }
        let message = json!({"type": "offer", "sdp": sdp, "target_id": id});
        self.room.offer = Some(Offer { message, holders: Vec::new() });
        self.room.offerer = Some(sender);
        self.sessions[sender].state = State::Offerer;
        self.serve_queue();
        Ok(())
    }

    fn handle_answer(&mut self, sender: Key, request: &Request, sdp: &str) -> Result<(), Refusal> {
        if let State::TooLate = self.sessions[sender].state {
            let refusal = Refusal("offer_taken", "that offer was taken or replaced");
            self.send_error(sender, &refusal, request.target_id.as_deref());
            self.connect(sender);
            return Ok(());
        }
        let no_offer = Refusal("bad_message", "target_id is missing, and there is no offer to answer");
        let to = self.recipient(sender, request)?.ok_or(no_offer)?;
        self.send(to, &json!({"type": "answer", "sdp": sdp, "id": request.id}));
        let is_free = matches!(self.sessions[sender].state, State::Idle | State::Handed);
        if is_free && self.room.offer.is_some() && self.room.offerer == Some(to) {
            self.pair(to, sender);
        }
        Ok(())
    }

    fn pair(&mut self, offerer: Key, answerer: Key) {
        self.take_offer_down();
        self.room.offerer = None;
        self.sessions[offerer].state = State::Paired(answerer);
        self.sessions[answerer].state = State::Paired(offerer);
        self.sessions[answerer].candidates.clear();
        let candidates = mem::take(&mut self.sessions[offerer].candidates);
        if !candidates.is_empty() {
            let id = self.id(offerer);
            self.send(answerer, &json!({"type": "candidate", "candidate": candidates, "id": id}));
        }
        self.serve_queue();
    }

    /// Ends an offer. Its holders learn that when they answer it.
    fn take_offer_down(&mut self) {
        let Some(offer) = self.room.offer.take() else { return };
        for holder in offer.holders {
            self.sessions[holder].state = State::TooLate;
        }
    }

    /// Relays a candidate, or stores it until the offer of its sender is answered.
    fn handle_candidate(&mut self, sender: Key, request: &Request, candidate: &str) -> Result<(), Refusal> {
        if let Some(to) = self.recipient(sender, request)? {
            self.send(to, &json!({"type": "candidate", "candidate": candidate, "id": request.id}));
            return Ok(());
        }
        let session = &mut self.sessions[sender];
        if let State::TooLate = session.state {
            // The candidate belongs to an answer that nobody wants any more.
            return Ok(());
        }
        if session.candidates.len() + candidate.len() >= STORED_BYTES_MAX {
            return Err(Refusal("too_many", "at most 64 KiB of candidates are stored"));
        }
        if !session.candidates.is_empty() {
            session.candidates.push('|');
        }
        session.candidates.push_str(candidate);
        Ok(())
    }

    /// Makes a peer idle and tells the peers that depend on it. A peer that disconnects leaves too.
    fn leave(&mut self, peer: Key) {
        self.sessions[peer].candidates.clear();
        match mem::replace(&mut self.sessions[peer].state, State::Idle) {
            State::Idle | State::TooLate => {}
            State::Waiting => self.room.waiting.retain(|waiting| *waiting != peer),
            State::Offerer => self.withdraw_offer(peer),
            State::Handed => {
                if let Some(offer) = &mut self.room.offer {
                    offer.holders.retain(|holder| *holder != peer);
                }
            }
            State::Paired(partner) => {
                self.sessions[partner].state = State::Idle;
                self.sessions[partner].candidates.clear();
                self.send(partner, &json!({"type": "peerLeft", "id": self.id(peer)}));
            }
        }
        self.serve_queue();
    }

    /// Withdraws the offer of a peer that leaves. Its holders return to the front of the queue.
    fn withdraw_offer(&mut self, offerer: Key) {
        self.room.offerer = None;
        let holders = self.room.offer.take().map_or(Vec::new(), |offer| offer.holders);
        for holder in holders.into_iter().rev() {
            self.sessions[holder].state = State::Waiting;
            self.room.waiting.push_front(holder);
            self.send(holder, &json!({"type": "peerLeft", "id": self.id(offerer)}));
        }
    }

    /// Returns the peer that a message is for. Without a name, it is the partner or the owner of the offer to answer.
    fn recipient(&self, sender: Key, request: &Request) -> Result<Option<Key>, Refusal> {
        if let Some(id) = &request.target_id {
            let found = self.room.ids.get(id).copied().filter(|key| *key != sender);
            return found.map(Some).ok_or(Refusal("unknown_peer", "target_id names no other peer"));
        }
        match self.sessions[sender].state {
            State::Paired(partner) => Ok(Some(partner)),
            State::Handed => Ok(self.room.offerer),
            _ => Ok(None),
        }
    }

    fn id(&self, peer: Key) -> &str {
        self.sessions[peer].id.as_deref().unwrap_or_default()
    }

    fn send_error(&mut self, to: Key, refusal: &Refusal, target_id: Option<&str>) {
        let Refusal(code, message) = refusal;
        let mut error = json!({"type": "error", "code": code, "message": message});
        if let Some(target_id) = target_id {
            error["target_id"] = target_id.into();
        }
        self.send(to, &error);
    }
}
