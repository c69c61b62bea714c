//! Sessions: one consumer that plays one producer.
//!
//! Either of the two can start a session. It ends when one of them ends it, leaves or gives up its role, and when a message does not
//! fit into the outbound queue of its receiver: a description or a candidate that is lost leaves both waiting for ever. The messages
//! for the end of a session are charged when it starts, so that the disconnect of a peer can end all of its sessions. They go into the
//! reserve of outbound queues.

use super::message::{self, Content};
use super::{
    CONSUMER_OFFER, GStreamer, NOT_IN_SESSION, PEER_BUSY, RATE_LIMITED, Role, TOO_MANY, UNKNOWN_PEER,
    UNKNOWN_SESSION,
};
use crate::limits::{
    GSTREAMER_SESSION_BYTES, GSTREAMER_SESSIONS_PER_CONSUMER_MAX, GSTREAMER_SESSIONS_PER_PAIR_MAX,
    GSTREAMER_SESSIONS_PER_PRODUCER_MAX,
};
use crate::memory_budget::Reservation;
use crate::protocol::{CloseCause, Context};
use crate::protocols::conn_table::Slot;
use crate::protocols::name_table::Named;
use crate::protocols::uuid;
use crate::rate_limit::{Verdict, credits_for_bytes};

/// A session.
pub(super) struct Session {
    pub(super) id: Box<str>,
    /// Its place in the order of all sessions.
    pub(super) number: u64,
    pub(super) producer: Slot,
    pub(super) consumer: Slot,
    _memory: Reservation,
}

impl Named for Session {
    fn name(&self) -> &str {
        &self.id
    }
}

impl Session {
    pub(super) fn has(&self, peer: Slot) -> bool {
        self.producer == peer || self.consumer == peer
    }

    pub(super) fn other(&self, peer: Slot) -> Slot {
        if self.producer == peer { self.consumer } else { self.producer }
    }
}

/// JSON texts of errors for clients of version 1.1.
const NO_ERROR: &str = "null";
const BUSY_ERROR: &str = r#""the receiver of a message reads too slowly""#;

/// The credits for the end of a session, which its start costs beyond those of the message.
const END_CREDITS: usize = 1;

impl GStreamer {
    /// Starts a session between the sender and the peer with this id. The one that produces is the producer; if the other one waits
    /// as a consumer, that is the sender, whatever its roles are.
    pub(super) fn start_session(
        &mut self,
        slot: Slot,
        peer_id: &str,
        offer: &str,
        message_bytes: usize,
        context: &mut Context,
    ) {
        let room = self.peers[slot].room;
        let Some(to) = self.find_peer(room, peer_id).filter(|to| *to != slot) else {
            return self.refuse(slot, UNKNOWN_PEER, "there is no other peer with this id", context);
        };
        let (producer, consumer) = if self.peers[to].has_role(Role::Producer) {
            (to, slot)
        } else if self.peers[to].has_role(Role::Consumer) {
            (slot, to)
        } else {
            let details = "the peer is neither a producer nor a consumer";
            return self.refuse(slot, UNKNOWN_PEER, details, context);
        };
        if let Err(details) = self.check_session_limits(producer, consumer) {
            return self.refuse(slot, TOO_MANY, details, context);
        }
        let Some(memory) = context.reserve(GSTREAMER_SESSION_BYTES) else {
            return self.refuse(slot, TOO_MANY, "the server has no memory for a session", context);
        };
        let credits = credits_for_bytes(message_bytes) + END_CREDITS;
        match context.charge(self.peers.conn(slot), credits, message_bytes) {
            Verdict::Pass => {}
            Verdict::Drop { .. } => return self.counts.count_error(RATE_LIMITED),
            Verdict::Close => return self.close(slot, CloseCause::RateLimited, context),
        }
        self.session_numbers += 1;
        let number = self.session_numbers;
        let id = uuid::random(&self.key, "GStreamer session", number);
        let started = message::session_started(&self.peers[producer].id, &id);
        let start = message::start_session(&self.peers[consumer].id, &id, offer);
        let (to_other, to_sender) = if producer == to { (start, started) } else { (started, start) };
        let is_queued = context.forward(self.peers.conn(to), [to_other]);
        context.send(self.peers.conn(slot), to_sender);
        if !is_queued {
            self.counts.count_error(PEER_BUSY);
            return self.send_end(slot, &id, BUSY_ERROR, context);
        }
        let session = Session { id: id.into(), number, producer, consumer, _memory: memory };
        let index = self.sessions.insert(session);
        self.peers[producer].sessions_as_producer.insert(number, index);
        self.peers[consumer].sessions_as_consumer.insert(number, index);
    }

    /// Checks whether the limits allow a further session.
    ///
    /// # Errors
    /// What there is too much of.
    fn check_session_limits(&self, producer: Slot, consumer: Slot) -> Result<(), &'static str> {
        let of_producer = &self.peers[producer].sessions_as_producer;
        let of_consumer = &self.peers[consumer].sessions_as_consumer;
        let is_of_pair = |index: &&u32| self.sessions[**index].producer == producer;
        if of_consumer.values().filter(is_of_pair).count() >= GSTREAMER_SESSIONS_PER_PAIR_MAX {
            return Err("there are too many sessions of these two peers");
        }
        if of_consumer.len() >= GSTREAMER_SESSIONS_PER_CONSUMER_MAX {
            return Err("the consumer has too many sessions");
        }
        if of_producer.len() >= GSTREAMER_SESSIONS_PER_PRODUCER_MAX {
            return Err("the producer has too many sessions");
        }
        Ok(())
    }

    /// Relays a description or a candidate to the other peer of a session.
    ///
    /// An unknown session is no error: both peers have messages on the way when it ends.
    pub(super) fn relay(
        &mut self,
        slot: Slot,
        session_id: &str,
        content: &Content<'_>,
        context: &mut Context,
    ) {
        let Some(index) = self.find_session(slot, session_id) else {
            return self.counts.count_error(UNKNOWN_SESSION);
        };
        let session = &self.sessions[index];
        if !session.has(slot) {
            return self.refuse(slot, NOT_IN_SESSION, "you are not in this session", context);
        }
        if session.consumer == slot && matches!(content, Content::Offer(_)) {
            let details = "the offer of a session is that of the producer";
            return self.refuse(slot, CONSUMER_OFFER, details, context);
        }
        let other = session.other(slot);
        let text = message::peer(&session.id, content);
        if !context.forward(self.peers.conn(other), [text]) {
            self.counts.count_error(PEER_BUSY);
            let session = self.remove_session(index);
            self.send_end(session.producer, &session.id, BUSY_ERROR, context);
            self.send_end(session.consumer, &session.id, BUSY_ERROR, context);
        }
    }

    /// Ends a session of the sender, and tells the other peer.
    pub(super) fn end_session(&mut self, slot: Slot, session_id: &str, error: &str, context: &mut Context) {
        let Some(index) = self.find_session(slot, session_id) else {
            return self.counts.count_error(UNKNOWN_SESSION);
        };
        if !self.sessions[index].has(slot) {
            return self.counts.count_error(NOT_IN_SESSION);
        }
        let session = self.remove_session(index);
        self.send_end(session.other(slot), &session.id, error, context);
    }

    /// Ends all sessions in which a peer is the producer, and tells the consumers.
    pub(super) fn end_sessions_as_producer(&mut self, slot: Slot, context: &mut Context) {
        while let Some((_, index)) = self.peers[slot].sessions_as_producer.first_key_value() {
            let session = self.remove_session(*index);
            self.send_end(session.consumer, &session.id, NO_ERROR, context);
        }
    }

    /// Ends all sessions in which a peer is the consumer, and tells the producers.
    pub(super) fn end_sessions_as_consumer(&mut self, slot: Slot, context: &mut Context) {
        while let Some((_, index)) = self.peers[slot].sessions_as_consumer.first_key_value() {
            let session = self.remove_session(*index);
            self.send_end(session.producer, &session.id, NO_ERROR, context);
        }
    }

    /// Finds a session in the room of this peer.
    fn find_session(&self, slot: Slot, id: &str) -> Option<u32> {
        let index = self.sessions.find(id)?;
        let producer = self.sessions[index].producer;
        (self.peers[producer].room == self.peers[slot].room).then_some(index)
    }

    fn remove_session(&mut self, index: u32) -> Session {
        let session = self.sessions.remove(index);
        self.peers[session.producer].sessions_as_producer.remove(&session.number);
        self.peers[session.consumer].sessions_as_consumer.remove(&session.number);
        session
    }

    /// Tells a peer that a session has ended, in its version of the protocol.
    fn send_end(&self, to: Slot, session_id: &str, error: &str, context: &mut Context) {
        let text = message::end_session(self.peers[to].version, session_id, error);
        context.send(self.peers.conn(to), text);
    }
}
