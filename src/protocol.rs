//! What a signaling protocol sees, and what it may do.
//!
//! A protocol is one file with a [`Descriptor`] and an implementation of [`Protocol`]. The dispatcher in
//! [`protocols`](crate::protocols) calls it with the events of connections, and it answers through its [`Context`].

use std::borrow::Cow;
use std::fmt;
use std::hash::RandomState;
use std::time::Duration;

use crate::config::{Config, Endpoint};
use crate::http::query::Query;
use crate::http::token::{Claims, TokenError};
use crate::memory_budget::Reservation;
use crate::message::Message;
use crate::metrics::Counts;

mod context;
mod probes;

pub(crate) use context::ConnectionStates;
pub use context::{Context, Times};

/// Identifies a connection: a number that is never reused, and a slot that is.
///
/// The two share 64 bits, so that a long-lived reference takes eight bytes and never reaches the next connection in the
/// same slot. Tables of connections are indexed by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conn(u64);

impl Conn {
    const SLOT_BITS: u32 = 24;

    /// Creates the id of the connection with this number (below 2^40: 34 years at 1,000 a second) in this slot.
    ///
    /// # Panics
    /// The slot is 2^24 or more. `--max-connections` is at most 1,000,000.
    pub fn new(number: u64, slot: usize) -> Conn {
        assert!(slot < 1 << Self::SLOT_BITS);
        Conn(number << Self::SLOT_BITS | slot as u64)
    }

    /// Restores an id from its bits, see [`Conn::bits`].
    pub fn from_bits(bits: u64) -> Conn {
        Conn(bits)
    }

    /// Returns number and slot in one integer.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Returns the number, counted from the start of the server.
    pub fn number(self) -> u64 {
        self.0 >> Self::SLOT_BITS
    }

    /// Returns the index into tables of connections.
    pub fn slot(self) -> usize {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as usize
    }
}

/// Registers a protocol: everything that the server needs to serve it.
///
/// The flag, the environment variable, the help, the start message, the routes, the labels in metrics, `/rooms` and the
/// log follow from it.
pub struct Descriptor {
    /// Its name, its flag and its paths.
    pub endpoint: Endpoint,
    /// Where its clients put their tokens.
    pub token_place: TokenPlace,
    /// Returns what a path is. `below` is the part of the path behind that of the endpoint and the slash after it; `None`
    /// for the path of the endpoint itself. Escape sequences of unreserved characters are decoded already.
    pub route: fn(below: Option<&str>, query: &Query) -> Route,
    /// Creates the protocol without connections. The key makes ids unguessable, and hashes of names that clients choose
    /// unpredictable.
    pub new: fn(config: &Config, key: RandomState) -> Box<dyn Protocol>,
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.endpoint.name)
    }
}

/// Where the clients of a protocol put their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// In the request of the upgrade: `Authorization: Bearer` or the query field `token`. The server verifies it.
    Request,
    /// The same, but messages name the rooms. The server verifies the token, and the protocol checks its claims of rooms.
    RequestWithoutRoom,
    /// In a message. The protocol verifies it.
    Message,
}

/// What a path of a protocol is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The WebSocket endpoint of this room. Empty: the default room, or the protocol names rooms in messages.
    Room(String),
    /// The WebSocket endpoint of a room whose name or query is not valid, for the reason in this sentence.
    Invalid(&'static str),
    /// A resource that [`Protocol::respond`] serves.
    Resource,
    /// Not a path of the protocol.
    Unknown,
}

/// What an upgrade asks for.
#[derive(Clone, Debug)]
pub struct Target {
    /// The protocol, by the path.
    pub protocol: &'static Descriptor,
    /// The room, by the path. See [`Route::Room`].
    pub room: String,
    /// The query of the request target.
    pub query: Query,
}

/// A `GET` request for a resource of a protocol, see [`Route::Resource`].
#[derive(Clone, Copy, Debug)]
pub struct ResourceRequest<'a> {
    /// See [`Descriptor::route`].
    pub below: Option<&'a str>,
    /// The query of the request target.
    pub query: &'a Query,
}

/// The response to a [`ResourceRequest`]. Pages of allowed origins may read it (CORS); others get 403.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The status code, of those that [`render`](crate::http::render) knows.
    pub status: u16,
    /// The value of the header `Content-Type`.
    pub content_type: &'static str,
    /// The content.
    pub body: String,
}

/// The membership of a connection in a room.
///
/// The log and `GET /rooms` show it. It also has effects: [`Protocol::on_disconnect`] is called only for a connection that has
/// a membership, and a drain closes the members of a room together.
#[derive(Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The room.
    pub room: &'a str,
    /// The id, once it is registered.
    pub id: Option<Cow<'a, str>>,
    /// What it is doing, in a word of its protocol.
    pub state: &'static str,
}

/// The rules of a signaling protocol.
///
/// A protocol is pure: it has no socket, no clock, no log and no randomness. Each event is one call, and everything that
/// follows from it is done through the [`Context`] before the call returns.
///
/// The dispatcher calls [`Protocol::on_connect`] once for each connection, and [`Protocol::on_disconnect`] when the connection
/// ends and [`Protocol::member`] still knows it. A protocol that closes a connection by [`Context::close`] forgets it, so that
/// no call follows. There is one exception: when the dispatcher closes a connection that stayed over the rate limit, it calls
/// [`Context::close`] itself and then [`Protocol::on_disconnect`], whether or not the protocol knows the connection. A protocol
/// ignores events of connections that it has forgotten.
pub trait Protocol {
    /// A connection is open. `target` is what it asked for. `claims` are those of its token, if tokens are required and
    /// [`Descriptor::token_place`] is the request.
    fn on_connect(&mut self, conn: Conn, target: &Target, claims: Option<&Claims>, context: &mut Context<'_>);

    /// A message has come, and the rate limit is charged for it. It does not end a probe: [`Protocol::on_alive`] follows after
    /// the read.
    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context<'_>);

    /// A message was dropped because its sender is over the rate limit. `notify`: the sender should hear of it. That is at
    /// most once a second.
    fn on_message_dropped(&mut self, conn: Conn, notify: bool, context: &mut Context<'_>);

    /// A probed connection showed life: bytes came, or its TCP acknowledged bytes of a full queue.
    fn on_alive(&mut self, _conn: Conn, _context: &mut Context<'_>) {}

    /// A probed connection showed no life in time.
    fn on_silent(&mut self, _conn: Conn, _context: &mut Context<'_>) {}

    /// A connection has ended, or is closing. Nothing further is sent to it.
    fn on_disconnect(&mut self, conn: Conn, context: &mut Context<'_>);

    /// A timer may be due, see [`Protocol::next_timer`]. One call is for one timer; it is allowed at any time.
    fn on_timer(&mut self, _context: &mut Context<'_>) {}

    /// Returns when [`Protocol::on_timer`] is due next.
    fn next_timer(&self) -> Option<Duration> {
        None
    }

    /// Responds to a request for one of its resources. `None`: there is no such resource (404).
    fn respond(&mut self, _request: ResourceRequest<'_>) -> Option<Resource> {
        None
    }

    /// Returns whether the room of this target can take another connection.
    fn has_capacity(&self, _target: &Target) -> bool {
        true
    }

    /// Returns whether the room of this target exists, as far as that is known at the upgrade. While the server drains,
    /// only rooms that exist take connections.
    fn room_exists(&self, _target: &Target) -> bool {
        true
    }

    /// Returns the room, id and state of a connection. `None`: the protocol does not know it.
    ///
    /// A protocol with several rooms in one connection returns any of them, or an empty name; it implements
    /// [`Protocol::members`] and [`Protocol::room_count`] too.
    fn member(&self, conn: Conn) -> Option<Member<'_>>;

    /// Returns all memberships of a connection, one for each room.
    fn members(&self, conn: Conn) -> Vec<Member<'_>> {
        self.member(conn).into_iter().collect()
    }

    /// Returns the number of rooms of a connection, if it can be in several. The log shows it instead of the name and the id,
    /// and a drain closes such connections one by one.
    fn room_count(&self, _conn: Conn) -> Option<usize> {
        None
    }

    /// Takes over secrets of a configuration that was read again.
    fn renew(&mut self, _config: &Config) {}

    /// Returns its counters, for the metrics.
    fn counts(&self, now: Duration) -> Counts;

    /// Checks the invariants that hold between any two events. Looks at everything: for tests and debug builds.
    ///
    /// # Panics
    /// An invariant does not hold.
    fn check(&self) {}
}

/// Why a protocol closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// Another connection got its id or seat: a probe failed, or the token of the other is for the id.
    Replaced,
    /// It stayed over the rate for too long.
    RateLimited,
    /// Its protocol has finished with it.
    Finished,
}

/// Carries out the effects of a protocol, in order.
///
/// It also returns the state of connections on which protocols depend, and reserves memory.
pub trait Outbox {
    /// Returns whether the queue of this peer has space to forward all of these. If not, records that: a peer whose queue rejects
    /// messages is closed when it makes no progress for a time.
    fn can_queue(&mut self, to: Conn, texts: &[String]) -> bool;
    /// Queues a forwarded message without checking limits: the caller has called [`Outbox::can_queue`] for it.
    fn push_forwarded(&mut self, to: Conn, text: String);
    /// Forwards one message to several peers. Returns how many of their queues had no space for it: see
    /// [`Outbox::can_queue`].
    fn broadcast(&mut self, to: &mut dyn Iterator<Item = Conn>, text: &str) -> usize;
    /// Returns whether more than half of the queue of this peer is used. Large messages of the server itself, which another
    /// peer has caused, wait then.
    fn is_congested(&self, to: Conn) -> bool;
    /// Returns whether a connection has input that the server had no time to read yet.
    fn has_unread_input(&self, conn: Conn) -> bool;
    /// Reserves memory for something that a protocol stores, if `--max-memory` allows it.
    fn reserve(&mut self, bytes: usize) -> Option<Reservation>;
    /// Queues a text message.
    fn send(&mut self, to: Conn, text: String);
    /// Queues a binary message.
    fn send_binary(&mut self, to: Conn, bytes: &[u8]);
    /// Queues a WebSocket ping. A peer that lives answers it.
    fn ping(&mut self, to: Conn);
    /// Stops reading from a connection. What the peer sends stays in the kernel's buffers, so that TCP holds it back.
    fn pause_reading(&mut self, conn: Conn);
    /// Reads from a connection again.
    fn resume_reading(&mut self, conn: Conn);
    /// Closes a connection. Its protocol has forgotten it.
    fn close(&mut self, conn: Conn, cause: CloseCause);
    /// Records that a connection has registered an id in a room: its time for that no longer runs. For the log, too.
    fn record_registration(&mut self, conn: Conn, room: &str, id: &str);
    /// Records that a connection has entered one of several rooms. For the log.
    fn record_entry(&mut self, conn: Conn, room: &str);
    /// Records that a connection has reached a limit, for which the protocol has no error message. For the log.
    fn record_limit(&mut self, conn: Conn, limit: &'static str);
    /// Records that a protocol has refused a connection because of its token. For the log and the metrics.
    fn record_refused_token(&mut self, conn: Conn, error: TokenError);
    /// Records the departure of a connection that its protocol has forgotten, and that was this member; `room_count` is
    /// [`Protocol::room_count`]. Marks the connection as left, so that no departure is reported again, and logs and counts it.
    /// Called once for each connection.
    fn record_departure(
        &mut self,
        conn: Conn,
        protocol: &'static Descriptor,
        member: &Member<'_>,
        room_count: Option<usize>,
    );
}
