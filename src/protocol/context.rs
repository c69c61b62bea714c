//! What a protocol may do while it handles an event, and the state of connections that all protocols share.

use std::time::Duration;

#[cfg(doc)]
use super::TokenPlace;
use super::probes::Probes;
use super::{CloseCause, Conn, Descriptor, Member, Outbox};
use crate::http::token::TokenError;
use crate::memory_budget::Reservation;
use crate::rate_limit::{Bucket, Rate, Verdict, credits_for_bytes};

/// When an event happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The monotonic time, since the start of the server.
    pub now: Duration,
    /// The time since 1970, for credentials that expire. It may be set at any time.
    pub wall: Duration,
}

/// What the dispatcher keeps for each connection, whatever its protocol: rate limit and probe.
pub(crate) struct ConnectionStates {
    pub(crate) rate: Option<Rate>,
    /// The token bucket of each connection, by slot.
    pub(crate) buckets: Vec<Bucket>,
    pub(crate) probes: Probes,
}

impl ConnectionStates {
    pub(crate) fn new(rate_max: u32) -> ConnectionStates {
        ConnectionStates { rate: Rate::per_second(rate_max), buckets: Vec::new(), probes: Probes::default() }
    }

    /// Charges the rest of the price of a message: `credits` in all, without the `paid` that were charged before.
    #[inline]
    pub(crate) fn charge(&mut self, conn: Conn, credits: usize, paid: usize, now: Duration) -> Verdict {
        self.buckets[conn.slot()].charge(self.rate, credits, paid, now)
    }
}

/// What a protocol sees and may do while it handles one event.
pub struct Context<'a> {
    /// The monotonic time, since the start of the server.
    pub now: Duration,
    /// The time since 1970, for credentials that expire. It may be set at any time.
    pub wall: Duration,
    protocol: &'static Descriptor,
    connection_states: &'a mut ConnectionStates,
    out: &'a mut dyn Outbox,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        times: Times,
        protocol: &'static Descriptor,
        connection_states: &'a mut ConnectionStates,
        out: &'a mut dyn Outbox,
    ) -> Context<'a> {
        Context { now: times.now, wall: times.wall, protocol, connection_states, out }
    }

    /// Sends a text message of the server itself. A peer whose queue cannot take it is disconnected.
    pub fn send(&mut self, to: Conn, text: String) {
        self.out.send(to, text);
    }

    /// Sends a binary message of the server itself. See [`Context::send`].
    pub fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.out.send_binary(to, bytes);
    }

    /// Forwards messages of another peer. Returns whether the queue had space: all of them are queued, or none.
    pub fn forward(&mut self, to: Conn, texts: impl AsRef<[String]> + IntoIterator<Item = String>) -> bool {
        let has_space = self.out.can_queue(to, texts.as_ref());
        if has_space {
            texts.into_iter().for_each(|text| self.out.push_forwarded(to, text));
        }
        has_space
    }

    /// Forwards one message of another peer to several peers. Their queues share its memory. Returns how many of them had no
    /// space for it.
    pub fn broadcast(&mut self, to: &mut dyn Iterator<Item = Conn>, text: &str) -> usize {
        self.out.broadcast(to, text)
    }

    /// Returns whether more than half of the queue of this peer is used.
    pub fn is_congested(&self, to: Conn) -> bool {
        self.out.is_congested(to)
    }

    /// Pings a peer.
    ///
    /// [`Protocol::on_alive`](super::Protocol::on_alive) follows or, after
    /// [`PROBE_TIME_MAX`](crate::limits::PROBE_TIME_MAX), [`Protocol::on_silent`](super::Protocol::on_silent).
    pub fn probe(&mut self, conn: Conn) {
        self.connection_states.probes.begin(conn, self.now);
        self.out.ping(conn);
    }

    /// Closes a connection, and reports the departure of this member. The protocol forgets the connection now and gets no
    /// further event of it.
    pub fn close(&mut self, conn: Conn, why: CloseCause, member: &Member<'_>) {
        self.close_member(conn, why, member, None);
    }

    /// Closes a connection of a protocol in which it can be in several rooms, see [`Context::close`].
    pub fn close_member(
        &mut self,
        conn: Conn,
        why: CloseCause,
        member: &Member<'_>,
        room_count: Option<usize>,
    ) {
        self.connection_states.probes.end(conn);
        self.out.close(conn, why);
        self.out.record_departure(conn, self.protocol, member, room_count);
    }

    /// Ends a probe, if one is running. Neither [`Protocol::on_alive`](super::Protocol::on_alive) nor [`Protocol::on_silent`](super::Protocol::on_silent) follows.
    pub fn cancel_probe(&mut self, conn: Conn) {
        self.connection_states.probes.end(conn);
    }

    /// Stops reading from a connection until [`Context::resume_reading`]. Input that was read already waits until then, too.
    pub fn pause_reading(&mut self, conn: Conn) {
        self.out.pause_reading(conn);
    }

    /// Reads from a connection again.
    pub fn resume_reading(&mut self, conn: Conn) {
        self.out.resume_reading(conn);
    }

    /// Reserves memory for something that the protocol stores. `None`: `--max-memory` does not allow it.
    pub fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        self.out.reserve(bytes)
    }

    /// Charges the rest of the price of a message.
    ///
    /// `credits` is the price in all. The dispatcher has charged the credits for the size of the message, `bytes`, before it
    /// delivered the message; this charges the difference, if there is one.
    pub fn charge(&mut self, conn: Conn, credits: usize, bytes: usize) -> Verdict {
        let charged = credits_for_bytes(bytes);
        if credits <= charged {
            return Verdict::Pass;
        }
        self.connection_states.charge(conn, credits, charged, self.now)
    }

    /// Charges for something that a connection causes without a message.
    pub fn charge_without_message(&mut self, conn: Conn, credits: usize) -> Verdict {
        self.connection_states.charge(conn, credits, 0, self.now)
    }

    /// Reports that the protocol refuses a connection because of its token, for the metrics. For [`TokenPlace::Message`].
    pub fn record_refused_token(&mut self, conn: Conn, error: TokenError) {
        self.out.record_refused_token(conn, error);
    }

    /// Reports that a connection has registered, so that its deadline for that no longer runs.
    pub fn registered(&mut self, conn: Conn, room: &str, id: &str) {
        self.out.record_registration(conn, room, id);
    }

    /// Reports that a connection has entered one of several rooms, for the log.
    pub fn entered(&mut self, conn: Conn, room: &str) {
        self.out.record_entry(conn, room);
    }

    /// Reports that a connection has reached a limit, for the log. For protocols without error messages.
    pub fn limit_reached(&mut self, conn: Conn, limit: &'static str) {
        self.out.record_limit(conn, limit);
    }
}
