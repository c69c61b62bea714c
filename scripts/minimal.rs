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
//! While one peer is asked for its offer, further peers wait in a queue. All of them receive the offer, and also those
//! that connect later, until one answers it. The others that answer it are connected again.
//!
//! One thread serves all connections with non-blocking sockets, in the loop in `Server::run`. No single message stops the
//! server or makes it wait, and each queue is limited. Connections and messages per second are not. `src/README.md` says
//! what each part grows into in `src/`, and why.
//!
//! ```text
//! cargo run --release --example minimal -- 127.0.0.1:8080
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::error::Error;
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{env, mem};

use log::{LevelFilter, debug, info, warn};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use simple_logger::SimpleLogger;
use slab::Slab;
use tungstenite::handshake::server::{NoCallback, ServerHandshake};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

/// Maximum size of an incoming message, and of all candidates that are stored, in bytes. An offer with video has 5 to 10 KB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Maximum size of the outbound queue of a session, in bytes. JSON that is relayed as a string at most doubles: the
/// largest offer and the largest stored candidates fit, one after the other.
const QUEUE_BYTES_MAX_FLOOR: usize = 4 * MESSAGE_BYTES_MAX;
/// Maximum time from accept to the end of the opening handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Bytes read from a session in one iteration of the loop, so that a fast sender does not delay others. Also the maximum
/// size of the HTTP request of the handshake: browsers send less than 2 KB.
const READ_BYTES_MAX: usize = 16 * 1024;
/// Interval of the timer that checks handshake deadlines and retries a failed accept.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

const LISTENER: Token = Token(usize::MAX);

fn main() -> Result<(), Box<dyn Error>> {
    SimpleLogger::new().with_level(LevelFilter::Info).env().init()?;
    let argument = env::args().nth(1).unwrap_or("127.0.0.1:8080".to_owned());
    let address = argument.parse().map_err(|_| format!("expected ADDR:PORT, got {argument}"))?;
    Server::bind(address)?.run()?;
    Ok(())
}

/// The index of a session in the slab. The slab reuses it as soon as the session is removed.
type Key = usize;

struct Session {
    connection: Connection,
    /// The end of the time for the opening handshake.
    deadline: Instant,
    /// The id that the first valid message registered.
    id: Option<String>,
    partner: Option<Key>,
}

enum Connection {
    /// The opening handshake is in progress (RFC 6455, section 4).
    Opening(MidHandshake<ServerHandshake<Stream, NoCallback>>),
    /// The handshake is complete.
    Open(WebSocket<Stream>),
    /// The socket is closed. The end of the iteration removes the session.
    Closed,
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    /// Whether the backlog of the listener may hold connections.
    may_accept: bool,
    next_tick: Instant,
    sessions: Slab<Session>,
    /// Sessions that may have input to read.
    readable: BTreeSet<Key>,
    /// Sessions that have output to flush, or are closed.
    dirty: BTreeSet<Key>,
    /// All registered peers.
    ids: HashMap<String, Key>,
    /// The offerer, which was asked for an offer, then the peers that wait for that offer.
    queue: VecDeque<Key>,
    /// The offer of the offerer, as other peers receive it.
    offer: Option<Value>,
    /// Candidates of the offerer, for the peer that answers: JSON texts, joined by `|`.
    candidates: String,
}

// ---- The loop ----

impl Server {
    fn bind(address: SocketAddr) -> io::Result<Server> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        info!("listening on ws://{}/ws", listener.local_addr()?);
        Ok(Server {
            poll,
            listener,
            may_accept: true,
            next_tick: Instant::now(),
            sessions: Slab::new(),
            readable: BTreeSet::new(),
            dirty: BTreeSet::new(),
            ids: HashMap::new(),
            queue: VecDeque::new(),
            offer: None,
            candidates: String::new(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let mut timeout = self.next_tick.saturating_duration_since(Instant::now());
            if self.may_accept || !self.readable.is_empty() {
                // mio is edge-triggered: it does not report the rest of this work a second time.
                timeout = Duration::ZERO;
            }
            match self.poll.poll(&mut events, Some(timeout)) {
                // A signal interrupted the call, such as SIGCONT after SIGSTOP.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                result => result?,
            }
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
            self.flush_and_remove_sessions();
            // Accept last: a new session may reuse a key that occurs in the events of this iteration. Accept one, so that
            // many new connections do not delay the others.
            if self.may_accept {
                self.accept_connection();
            }
        }
    }

    fn accept_connection(&mut self) {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => return,
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    // The process probably has no file descriptor left. The next tick retries.
                    warn!("cannot accept a connection: {error}");
                }
                self.may_accept = false;
                return;
            }
        };
        let entry = self.sessions.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(entry.key()), interest) {
            warn!("cannot register a connection: {error}");
            return;
        }
        // Nagle's algorithm would delay small messages. If this fails, the connection is lost, and reading fails too.
        let _ = stream.set_nodelay(true);
        let config = WebSocketConfig::default()
            .read_buffer_size(4 * 1024)
            .write_buffer_size(16 * 1024)
            .max_write_buffer_size(QUEUE_BYTES_MAX_FLOOR)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let stream = Stream { stream, read_budget: READ_BYTES_MAX };
        let handshake = ServerHandshake::start(stream, NoCallback, Some(config));
        entry.insert(Session {
            connection: Connection::Opening(handshake),
            deadline: Instant::now() + HANDSHAKE_TIME_MAX,
            id: None,
            partner: None,
        });
    }

    fn continue_handshake(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.connection = match mem::replace(&mut session.connection, Connection::Closed) {
            Connection::Opening(handshake) => match handshake.handshake() {
                Ok(socket) => Connection::Open(socket),
                Err(HandshakeError::Interrupted(handshake)) => Connection::Opening(handshake),
                Err(HandshakeError::Failure(error)) => return self.close(key, &error),
            },
            other => other,
        };
    }

    fn receive_messages(&mut self, key: Key) {
        let Some(socket) = self.socket(key) else { return };
        socket.get_mut().read_budget = READ_BYTES_MAX;
        while let Some(socket) = self.socket(key) {
            match socket.read() {
                Ok(Message::Text(text)) => self.handle_message(key, &text),
                Ok(Message::Binary(_)) => self.close(key, &"a binary message"),
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
            // The queue is full, because the peer reads too slowly.
            Err(error) if !is_would_block(&error) => self.close(to, &error),
            _ => _ = self.dirty.insert(to),
        }
    }

    /// Closes the socket. The session keeps its key until the end of the iteration, because callers still use it.
    fn close(&mut self, key: Key, reason: &dyn Display) {
        debug!("session {key}: {reason}");
        self.sessions[key].connection = Connection::Closed;
        self.dirty.insert(key);
    }

    /// Flushes all dirty sessions and removes closed ones. A failed flush closes a session, and removing a session sends
    /// messages to others.
    fn flush_and_remove_sessions(&mut self) {
        while let Some(key) = self.dirty.pop_first() {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            match &mut session.connection {
                Connection::Opening(_) => {}
                Connection::Open(socket) => match socket.flush() {
                    // mio reports when the socket becomes writable.
                    Err(error) if !is_would_block(&error) => self.close(key, &error),
                    _ => {}
                },
                Connection::Closed => {
                    self.leave(key);
                    if let Some(id) = self.sessions.remove(key).id {
                        self.ids.remove(&id);
                    }
                }
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
        for (key, session) in &mut self.sessions {
            if matches!(session.connection, Connection::Opening(_)) && session.deadline <= now {
                session.connection = Connection::Closed;
                self.dirty.insert(key);
            }
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

fn is_would_block(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
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

// ---- The rules ----

/// A message from a client. SDP and candidates stay JSON texts, exactly as the client wrote them.
#[derive(Deserialize)]
struct ClientMessage<'a> {
    #[serde(rename = "type")]
    kind: String,
    id: String,
    target_id: Option<String>,
    #[serde(borrow)]
    sdp: Option<&'a RawValue>,
    #[serde(borrow)]
    candidate: Option<&'a RawValue>,
}

/// The code of an error reply.
type ErrorCode = &'static str;

impl Server {
    fn handle_message(&mut self, sender: Key, text: &str) {
        let Ok(message) = serde_json::from_str::<ClientMessage>(text) else {
            return self.send(sender, &json!({"type": "error", "code": "bad_message"}));
        };
        if let Err(code) = self.process_message(sender, &message) {
            self.send(sender, &json!({"type": "error", "code": code, "target_id": message.target_id}));
        }
    }

    fn process_message(&mut self, sender: Key, message: &ClientMessage) -> Result<(), ErrorCode> {
        self.register(sender, &message.id)?;
        let id = &message.id;
        let sdp = message.sdp.map_or("null", RawValue::get);
        let candidate = message.candidate.map_or("null", RawValue::get);
        match message.kind.as_str() {
            "connect" => self.connect(sender),
            "leave" => self.leave(sender),
            "offer" => match self.recipient(sender, message)? {
                Some(to) => self.send(to, &json!({"type": "offer", "sdp": sdp, "target_id": id, "id": id})),
                None => self.publish_offer(sender, json!({"type": "offer", "sdp": sdp, "target_id": id}))?,
            },
            "answer" => {
                let to = self.recipient(sender, message)?.ok_or("bad_message")?;
                self.handle_answer(sender, to, &json!({"type": "answer", "sdp": sdp, "id": id}))?;
            }
            "candidateAdd" => match self.recipient(sender, message)? {
                Some(to) => self.send(to, &json!({"type": "candidate", "candidate": candidate, "id": id})),
                None => self.store_candidate(sender, candidate)?,
            },
            _ => return Err("unknown_type"),
        }
        Ok(())
    }

    /// Binds the id to the connection until the connection is closed.
    fn register(&mut self, key: Key, id: &str) -> Result<(), ErrorCode> {
        match &self.sessions[key].id {
            Some(own) if own == id => return Ok(()),
            Some(_) => return Err("id_mismatch"),
            None if id.is_empty() => return Err("bad_message"),
            None if self.ids.contains_key(id) => return Err("id_taken"),
            None => {}
        }
        self.ids.insert(id.to_owned(), key);
        self.sessions[key].id = Some(id.to_owned());
        Ok(())
    }

    /// Returns the peer that the message names, or else the partner.
    fn recipient(&self, sender: Key, message: &ClientMessage) -> Result<Option<Key>, ErrorCode> {
        let Some(target_id) = message.target_id.as_deref().filter(|id| !id.is_empty()) else {
            return Ok(self.sessions[sender].partner);
        };
        match self.ids.get(target_id) {
            Some(&key) if key != sender => Ok(Some(key)),
            _ => Err("unknown_peer"),
        }
    }

    fn connect(&mut self, peer: Key) {
        if self.sessions[peer].partner.is_some() || self.queue.contains(&peer) {
            return;
        }
        if let Some(offer) = self.offer.clone() {
            self.send(peer, &offer);
            return;
        }
        self.queue.push_back(peer);
        if self.queue.len() == 1 {
            self.send(peer, &json!({"type": "offer"}));
        }
    }

    fn offerer(&self) -> Option<Key> {
        self.queue.front().copied()
    }

    /// Sends an offer to the peers behind the offerer in the queue, and keeps it for those that connect later.
    fn publish_offer(&mut self, sender: Key, offer: Value) -> Result<(), ErrorCode> {
        // A second offer is rejected, so that one peer cannot fill the queues of all others.
        if self.offerer() != Some(sender) || self.offer.is_some() {
            return Err("not_offerer");
        }
        for peer in self.queue.split_off(1) {
            self.send(peer, &offer);
        }
        self.offer = Some(offer);
        Ok(())
    }

    /// Stores a candidate of the offerer, until a peer answers its offer.
    fn store_candidate(&mut self, sender: Key, candidate: &str) -> Result<(), ErrorCode> {
        if self.offerer() != Some(sender) {
            // There is no offer that the candidate could belong to.
            return Ok(());
        }
        if self.candidates.len() + candidate.len() >= MESSAGE_BYTES_MAX {
            return Err("too_many");
        }
        if !self.candidates.is_empty() {
            self.candidates.push('|');
        }
        self.candidates.push_str(candidate);
        Ok(())
    }

    /// Relays an answer. The first answer to a published offer makes a pair.
    fn handle_answer(&mut self, sender: Key, to: Key, answer: &Value) -> Result<(), ErrorCode> {
        let is_offerer = self.offerer() == Some(to);
        let has_other_partner = self.sessions[to].partner.is_some_and(|partner| partner != sender);
        if has_other_partner || (is_offerer && self.offer.is_none()) {
            // The offer that the sender answers was taken or withdrawn. The sender is connected again, which may send it the next
            // offer before the error.
            self.connect(sender);
            return Err("offer_taken");
        }
        self.send(to, answer);
        if is_offerer && self.sessions[sender].partner.is_none() {
            self.pair(to, sender);
        }
        Ok(())
    }

    fn pair(&mut self, offerer: Key, answerer: Key) {
        self.sessions[offerer].partner = Some(answerer);
        self.sessions[answerer].partner = Some(offerer);
        if !self.candidates.is_empty() {
            let id = &self.sessions[offerer].id;
            let candidates = json!({"type": "candidate", "candidate": self.candidates, "id": id});
            self.send(answerer, &candidates);
        }
        self.leave_queue(offerer);
    }

    /// Removes a peer from the queue. If it was the offerer, its offer ends, and the next peer in the queue is asked. The peers
    /// that received a published offer are no longer in the queue: they must send `connect` again. (`src/` does that for them.)
    fn leave_queue(&mut self, peer: Key) {
        let was_offerer = self.offerer() == Some(peer);
        self.queue.retain(|queued| *queued != peer);
        if was_offerer {
            self.offer = None;
            self.candidates.clear();
            if let Some(next) = self.offerer() {
                self.send(next, &json!({"type": "offer"}));
            }
        }
    }

    /// Makes a peer idle and notifies its partner.
    fn leave(&mut self, peer: Key) {
        self.leave_queue(peer);
        if let Some(partner) = self.sessions[peer].partner.take() {
            self.sessions[partner].partner = None;
            let message = json!({"type": "peerLeft", "id": self.sessions[peer].id});
            self.send(partner, &message);
        }
    }
}
