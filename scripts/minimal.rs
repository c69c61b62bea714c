//! A WebRTC signaling server in one file. Read it first: the server in `src/` is built around the same loop and rules.
//!
//! Two browsers that open a WebRTC connection first exchange session descriptions (an *offer* and an *answer*, in SDP)
//! and the addresses at which they may be reachable (*candidates*). The server relays these and never looks into them:
//!
//! ```text
//! A                             server                              B
//! │ {"type":"connect","id":"A"} → │                                 │
//! │           ← {"type":"offer"}  │  asks the first peer to offer   │
//! │   {"type":"offer","sdp":…}  → │  keeps the offer                │
//! │                               │ ← {"type":"connect","id":"B"}   │
//! │                               │   {"type":"offer","sdp":…}    → │
//! │                               │ ← {"type":"answer","sdp":…}     │
//! │  ← {"type":"answer","sdp":…}  │  A and B are a pair             │
//! │   {"type":"candidateAdd",…} → │   {"type":"candidate",…}      → │
//! │    ← {"type":"candidate",…}   │ ← {"type":"candidateAdd",…}     │
//! ```
//!
//! While one peer is asked for its offer, further peers wait in a queue. After each pair the next peer is asked.
//!
//! One thread serves all connections with non-blocking sockets. Each iteration of the loop in `Server::run` waits for
//! readiness events, reads and handles messages, flushes the replies, removes closed sessions, and accepts connections.
//! A misbehaving peer affects only its own connection.
//!
//! `src/` adds rooms, heartbeats, a timeout for offers and answers, rate limits, limits on connections and memory,
//! backpressure, close codes, tokens, metrics, graceful shutdown, and answers to plain HTTP requests.
//!
//! ```text
//! cargo run --release --example minimal -- 127.0.0.1:8080
//! cargo run --release --example load -- --url ws://127.0.0.1:8080/ws --pid "$(pidof minimal)"
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
/// Maximum size of the outbound queue of a session, in bytes. A relayed text at most doubles when it is escaped: the
/// largest offer and the largest stored candidates fit, one after the other.
const QUEUE_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;
/// Maximum size of the candidates that are stored for one offer, in bytes.
const STORED_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of an id, in bytes.
const ID_BYTES_MAX: usize = 128;
/// Maximum time from accept to the end of the opening handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Maximum size of the HTTP request of the handshake, in bytes. Browsers send less than 2 KB.
const REQUEST_BYTES_MAX: usize = 32 * 1024;
/// Bytes read from one session in one iteration of the loop, so that a fast sender does not delay other sessions.
const READ_BYTES_PER_ITERATION: usize = 16 * 1024;
/// Connections accepted in one iteration of the loop.
const ACCEPTS_PER_ITERATION: usize = 256;
/// Interval of the timer that checks handshake deadlines and retries a failed accept.
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

/// The index of a session in the slab. The slab reuses it as soon as the session is removed.
type Key = usize;

struct Session {
    connection: Connection,
    /// The id that the first valid message registered.
    id: Option<String>,
    state: State,
    /// Candidates that the first peer to answer this peer's offer receives: JSON texts, joined by `|`.
    candidates: String,
}

enum Connection {
    /// The opening handshake is in progress (RFC 6455, section 4).
    Opening { handshake: MidHandshake<ServerHandshake<Stream, NoCallback>>, deadline: Instant },
    /// The handshake is complete.
    Open(WebSocket<Stream>),
    /// The socket is closed. The end of the iteration removes the session.
    Closed,
}

/// The state of a peer in the pairing.
enum State {
    /// The peer has not asked for a partner, or its partner left.
    Idle,
    /// The peer is in the queue.
    Waiting,
    /// The peer was asked for an offer, or its offer is published.
    Offerer,
    /// The peer received the published offer and may answer it.
    Handed,
    /// Another peer answered the offer that this peer received, or the offer was replaced.
    TooLate,
    /// The peer and this partner form a pair.
    Paired(Key),
}

/// The peers that can be paired with each other.
#[derive(Default)]
struct Room {
    /// All registered peers.
    ids: HashMap<String, Key>,
    /// The queue of peers in [`State::Waiting`]. It is empty while there is no offerer.
    waiting: VecDeque<Key>,
    /// The peer in [`State::Offerer`].
    offerer: Option<Key>,
    /// The published offer of the offerer. The first answer removes it.
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
    /// Whether the backlog of the listener may hold connections.
    may_accept: bool,
    sessions: Slab<Session>,
    /// Sessions that may have input to read.
    readable: BTreeSet<Key>,
    /// Sessions that may have output to flush.
    dirty: BTreeSet<Key>,
    /// Sessions that were closed in this iteration.
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
            // A failed flush closes a session, and removing a session sends messages to other peers.
            while !self.dirty.is_empty() || !self.closed.is_empty() {
                self.flush_dirty_sessions();
                self.remove_closed_sessions();
            }
            // Accept last: a new session may reuse a key that occurs in the events of this iteration.
            self.accept_connections();
        }
    }

    /// Waits for events, but not while work is left: mio is edge-triggered and does not report it a second time.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.may_accept || !self.readable.is_empty() {
            Duration::ZERO
        } else {
            self.next_tick.saturating_duration_since(Instant::now())
        };
        match self.poll.poll(events, Some(timeout)) {
            // A signal interrupted the call, such as SIGCONT after SIGSTOP.
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
                    // The process probably has no file descriptor left. The next tick retries.
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
        // Nagle's algorithm would delay small messages. If this fails, the connection is lost, and reading it fails too.
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
                    // Send the Close frame that tungstenite has prepared as the reply.
                    let _ = socket.flush();
                    self.close(key, &"closed by the peer");
                }
                // tungstenite replies to pings.
                Ok(_) => {}
                Err(error) if is_would_block(&error) => {
                    // The rest is still in the socket, and no event reports it.
                    if socket.get_ref().read_budget == 0 {
                        self.readable.insert(key);
                    }
                    return;
                }
                // The message is too large, the frame is invalid, or the connection is lost.
                Err(error) => self.close(key, &error),
            }
        }
    }

    /// Adds a message to the outbound queue of a session. The end of the iteration flushes the queue.
    fn send(&mut self, to: Key, message: &Value) {
        let Some(socket) = self.socket(to) else { return };
        match socket.write(Message::text(message.to_string())) {
            Ok(()) => _ = self.dirty.insert(to),
            // The message is queued. mio reports when the socket becomes writable.
            Err(error) if is_would_block(&error) => {}
            // The queue is full, because the peer reads too slowly.
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

    /// Closes the socket. The session keeps its key until the end of the iteration, because callers still use it.
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

    /// Runs the timer: closes sessions whose handshake takes too long.
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

/// A TCP stream that limits the bytes read in one iteration. A limit on messages is not enough: within one call,
/// `WebSocket::read` reads all empty fragments that arrive.
struct Stream {
    stream: TcpStream,
    /// Bytes that may be read before the next refill. At 0 a read returns `WouldBlock`.
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

/// A message from a client. SDP and candidates are JSON texts, exactly as the client wrote them.
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
        // A missing field means null.
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

    /// Binds the id to the connection until the connection is closed.
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

    /// Takes peers from the queue: asks one for an offer, or hands it an offer that no other peer may answer.
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

    /// Relays an offer to the partner or to the peer that it names, or else publishes it.
    fn handle_offer(&mut self, sender: Key, request: &Request, sdp: &str) -> Result<(), Refusal> {
        let to = match self.recipient(sender, request)? {
            // The recipient would be the owner of the offer that the sender should answer.
            Some(to) if !matches!(self.sessions[sender].state, State::Handed) => to,
            _ => return self.publish_offer(sender, &request.id, sdp),
        };
        if let State::TooLate = self.sessions[to].state {
            // The recipient has a new offer to answer.
            self.sessions[to].state = State::Idle;
        }
        self.send(to, &json!({"type": "offer", "sdp": sdp, "target_id": request.id, "id": request.id}));
        Ok(())
    }

    /// Publishes an offer, for any peer that connects. It replaces an earlier offer of the same peer.
    fn publish_offer(&mut self, sender: Key, id: &str, sdp: &str) -> Result<(), Refusal> {
        if self.room.offerer.is_some_and(|offerer| offerer != sender) {
            return Err(Refusal("not_offerer", "another peer is the offerer; connect and wait to be asked"));
        }
        if self.room.offer.is_some() {
            self.remove_offer();
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
        self.remove_offer();
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

    /// Removes the published offer. Its other holders get an error if they answer it.
    fn remove_offer(&mut self) {
        let Some(offer) = self.room.offer.take() else { return };
        for holder in offer.holders {
            self.sessions[holder].state = State::TooLate;
        }
    }

    /// Relays a candidate, or stores it until a peer answers the offer of the sender.
    fn handle_candidate(&mut self, sender: Key, request: &Request, candidate: &str) -> Result<(), Refusal> {
        if let Some(to) = self.recipient(sender, request)? {
            self.send(to, &json!({"type": "candidate", "candidate": candidate, "id": request.id}));
            return Ok(());
        }
        let session = &mut self.sessions[sender];
        if let State::TooLate = session.state {
            // The candidate belongs to an answer that will be refused.
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

    /// Makes a peer idle and notifies its partner, or the holders of its offer.
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

    /// Withdraws the offer of a peer that leaves. Its holders move to the front of the queue.
    fn withdraw_offer(&mut self, offerer: Key) {
        self.room.offerer = None;
        let holders = self.room.offer.take().map_or(Vec::new(), |offer| offer.holders);
        for holder in holders.into_iter().rev() {
            self.sessions[holder].state = State::Waiting;
            self.room.waiting.push_front(holder);
            self.send(holder, &json!({"type": "peerLeft", "id": self.id(offerer)}));
        }
    }

    /// Returns the peer that the message names, or else the partner or the owner of the offer to answer.
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
