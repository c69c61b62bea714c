//! The table of connections, and the effects of protocols on them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::net::{IpAddr, Shutdown};
use std::time::Duration;

use log::{debug, info};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use slab::Slab;

use crate::config::Config;
use crate::http::address::{Address, PerIpCounts};
use crate::http::token::TokenError;
use crate::http::{self, ListenerKind, RejectReason};
use crate::limits::{
    CLOSES_PER_ITERATION, CONNECTION_BYTES, EVICTION_CANDIDATES_MAX, EVICTION_TIME_MIN, HEAD_TIME_FULL_MAX,
    HEAD_TIME_MAX, OPERATOR_CONNECTIONS_MAX, REJECTED_AT_ONCE, REJECTIONS_LOGGED_MAX, RESPONSE_TIME_MIN,
    SWEEP_PER_ITERATION,
};
use crate::memory_budget::Reservation;
use crate::protocol::{CloseCause, Conn, Descriptor, Member, Outbox};
use crate::session::{self, CloseReason, Event, Scratch, Session, SharedFrame, SharedState};
use crate::timestamp::Timestamp;

/// All connections, by slot.
pub(super) struct Connections {
    pub(super) entries: Slab<Entry>,
    pub(super) shared: SharedState,
    /// The time since 1970, for tokens and credentials.
    pub(super) wall: Duration,
    /// Whether the server drains: only rooms that exist take connections.
    pub(super) is_draining: bool,
    /// Connections by client address.
    pub(super) per_ip: PerIpCounts,
    /// Slots of sessions to flush in this iteration.
    pub(super) dirty: Vec<usize>,
    /// Slots of sessions to read: those with a readiness event in this iteration, and those that may have more input, which
    /// are read in the next iteration without an event.
    pub(super) ready: Vec<usize>,
    /// Units of work in this iteration: messages that were handled or queued. See
    /// [`WORK_PER_ITERATION`](crate::limits::WORK_PER_ITERATION).
    pub(super) work: usize,
    /// The number of the latest connection: the count of connections so far.
    last_number: u64,
    /// WebSockets, including those that are closing.
    pub(super) websockets: usize,
    /// Connections of the operator listener.
    operator_count: usize,
    /// Slots of connections that are not WebSockets, by connection number (the oldest is the first), for each
    /// [`ListenerKind`].
    plain: [BTreeMap<u64, usize>; 2],
    /// Upgrades that were rejected since the last sweep began.
    rejections: usize,
}

pub(super) struct Entry {
    pub session: Session<TcpStream>,
    pub conn: Conn,
    /// The listener that it came through.
    pub listener: ListenerKind,
    /// Where the peer is: at the other end of TCP, or where a trusted proxy says.
    pub address: Address,
    /// Whether it counts towards the limit of its address.
    pub is_counted: bool,
    pub since: Timestamp,
    pub stage: Stage,
    /// Whether it is in `dirty`.
    pub dirty: bool,
    pub input: InputState,
    /// Whether an event said that the peer has closed its side. A short read does not prove that the kernel has no more then.
    pub half_closed: bool,
}

/// What a connection is to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has sent no request, or one that was no accepted upgrade.
    Http,
    /// It is counted as a WebSocket, and its protocol must be notified of the departure.
    WebSocket,
    /// It is counted as a WebSocket, and its departure is recorded: its protocol has forgotten it.
    Left,
}

/// Whether a connection has input to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputState {
    /// It is not in `ready`, or is being read now.
    NotQueued,
    /// It is in `ready`.
    Ready,
    /// It is in `ready`, and the last iteration had no time to read it.
    Postponed,
}

/// Each connection has one. This fails to compile if [`Entry`] grows. In a debug build mio's streams are larger.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Option<Entry>>() <= 80);

impl Connections {
    pub(super) fn new(config: Config) -> Connections {
        let mut shared = SharedState::new(config);
        let ends = CloseReason::ALL.iter().filter(|end| **end != CloseReason::Http);
        shared.metrics.closings = ends.map(|end| (end.name(), 0)).collect();
        shared.metrics.refused_tokens = TokenError::ALL.iter().map(|fault| (fault.name(), 0)).collect();
        shared.metrics.refused_upgrades = http::REJECT_STATUSES.map(|status| (status, 0)).into();
        Connections {
            entries: Slab::new(),
            wall: Duration::ZERO,
            is_draining: false,
            per_ip: PerIpCounts::new(shared.config.connections_per_ip_max),
            shared,
            dirty: Vec::new(),
            ready: Vec::new(),
            work: 0,
            last_number: 0,
            websockets: 0,
            operator_count: 0,
            plain: [BTreeMap::new(), BTreeMap::new()],
            rejections: 0,
        }
    }

    /// Changes a session, and marks it as dirty.
    pub(super) fn with_session<T>(
        &mut self,
        slot: usize,
        work: impl FnOnce(&mut Session<TcpStream>, &mut SharedState) -> T,
    ) -> T {
        self.mark_dirty(slot);
        work(&mut self.entries[slot].session, &mut self.shared)
    }

    /// Schedules a flush of a session in this iteration, and its removal if it is closed.
    pub(super) fn mark_dirty(&mut self, slot: usize) {
        if !mem::replace(&mut self.entries[slot].dirty, true) {
            self.dirty.push(slot);
        }
    }

    /// Schedules a read of a session: in this iteration after a readiness event, else in the next one.
    pub(super) fn mark_ready(&mut self, slot: usize) {
        let input = &mut self.entries[slot].input;
        if *input == InputState::NotQueued {
            *input = InputState::Ready;
            self.ready.push(slot);
        }
    }

    /// Changes the state of a session in the ready queue. Returns whether it is in that queue: the slot may have been freed,
    /// and may hold another connection now.
    pub(super) fn set_input(&mut self, slot: usize, input: InputState) -> bool {
        let queued = self.entries.get_mut(slot).filter(|entry| entry.input != InputState::NotQueued);
        let Some(entry) = queued else { return false };
        entry.input = input;
        true
    }

    /// Returns the next event of a session that was read.
    pub(super) fn next<'a>(&mut self, slot: usize, scratch: &'a mut Scratch) -> Option<Event<'a>> {
        self.entries[slot].session.next_event(scratch, &mut self.shared)
    }

    /// Returns when another connection can be accepted: now if there is capacity, else when an older one may be evicted.
    pub(super) fn capacity_at(&self, kind: ListenerKind) -> Option<Duration> {
        if self.has_capacity(kind) {
            return Some(self.shared.now);
        }
        self.next_to_evict(kind).map(|(at, _)| at)
    }

    /// Evicts the oldest connection that is not a WebSocket, if there is no capacity for another one.
    ///
    /// So a full server still responds to `/healthz`, however many connections send nothing. This is called last in an
    /// iteration, when nothing refers to the slot.
    pub(super) fn make_capacity(&mut self, kind: ListenerKind) {
        if self.has_capacity(kind) {
            return;
        }
        if let Some((_, slot)) = self.next_to_evict(kind).filter(|(at, _)| *at <= self.shared.now) {
            let entry = &mut self.entries[slot];
            debug!("evicted the connection from {}: the server is full", entry.address);
            entry.session.evict(&mut self.shared);
            self.remove(slot);
        }
    }

    /// Returns the connection that is evicted next, and from when on it may be.
    fn next_to_evict(&self, kind: ListenerKind) -> Option<(Duration, usize)> {
        let oldest = self.plain[kind as usize].values().take(EVICTION_CANDIDATES_MAX);
        let candidates = oldest.map(|&slot| {
            let entry = &self.entries[slot];
            let evictable_at = match entry.session.flushing_since() {
                Some(since) => since + RESPONSE_TIME_MIN,
                None => entry.since.get() + EVICTION_TIME_MIN,
            };
            (evictable_at, slot)
        });
        candidates.min()
    }

    /// Returns whether a listener may accept another connection without evicting one.
    fn has_capacity(&self, kind: ListenerKind) -> bool {
        let main = self.entries.len() - self.operator_count;
        let SharedState { config, budget, .. } = &self.shared;
        match kind {
            // Without memory, some are still accepted and get a 503 response.
            ListenerKind::Main if !budget.allows(CONNECTION_BYTES) => {
                main < self.websockets + REJECTED_AT_ONCE
            }
            ListenerKind::Main => main < config.connections_max + REJECTED_AT_ONCE,
            ListenerKind::Operator => self.operator_count < OPERATOR_CONNECTIONS_MAX,
        }
    }

    /// Adds a connection that was accepted.
    pub(super) fn register(
        &mut self,
        mut stream: TcpStream,
        address: Address,
        kind: ListenerKind,
        registry: &Registry,
    ) -> io::Result<()> {
        let slot = self.entries.vacant_key();
        registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        self.last_number += 1;
        self.plain[kind as usize].insert(self.last_number, slot);
        let is_counted = kind == ListenerKind::Main && !self.shared.config.is_trusted_proxy(address);
        if is_counted {
            self.per_ip.add(address);
        }
        let is_short_of_places = kind == ListenerKind::Main && self.are_full();
        let head_time = if is_short_of_places { HEAD_TIME_FULL_MAX } else { HEAD_TIME_MAX };
        self.operator_count += usize::from(kind == ListenerKind::Operator);
        self.entries.insert(Entry {
            session: Session::new(stream, head_time, &mut self.shared),
            conn: Conn::new(self.last_number, slot),
            listener: kind,
            address,
            is_counted,
            since: self.shared.now.into(),
            stage: Stage::Http,
            dirty: false,
            input: InputState::NotQueued,
            half_closed: false,
        });
        Ok(())
    }

    /// Returns whether the limits allow no further WebSocket.
    pub(super) fn are_full(&self) -> bool {
        self.websockets >= self.shared.config.connections_max || !self.shared.budget.allows(0)
    }

    /// Evaluates the deadlines of a slice of the sessions from this slot on, and closes those for which `is_dismissed` holds.
    /// Returns where the next slice begins.
    pub(super) fn tick(&mut self, from: usize, is_dismissed: impl Fn(&Entry) -> bool) -> Option<usize> {
        let (slots, next) = self.slice(from, SWEEP_PER_ITERATION);
        for slot in slots {
            if is_dismissed(&self.entries[slot]) {
                self.with_session(slot, |session, shared| session.close(CloseReason::GoingAway, shared));
            }
            // Timeouts are not evaluated before pending input is read and queued output is flushed.
            let entry = &mut self.entries[slot];
            if entry.input == InputState::Postponed || entry.dirty {
                continue;
            }
            if entry.session.tick(&mut self.shared) {
                self.mark_dirty(slot);
            }
        }
        next
    }

    /// Closes a slice of the sessions from this slot on (1001). Returns where the next slice begins.
    pub(super) fn close_all(&mut self, from: usize) -> Option<usize> {
        let (slots, next) = self.slice(from, CLOSES_PER_ITERATION);
        for slot in slots {
            self.with_session(slot, |session, shared| session.close(CloseReason::GoingAway, shared));
        }
        next
    }

    /// Returns the next occupied slots, and where the next slice begins.
    fn slice(&self, from: usize, max: usize) -> (Vec<usize>, Option<usize>) {
        let occupied = (from..self.entries.capacity()).filter(|slot| self.entries.contains(*slot));
        let slots: Vec<usize> = occupied.take(max).collect();
        let next = slots.last().map(|last| last + 1).filter(|_| slots.len() == max);
        (slots, next)
    }

    /// Sets aside the rest of what a paused session has sent, or disconnects it if there is no memory for that.
    pub(super) fn hold_or_close(&mut self, slot: usize, scratch: &mut Scratch) {
        if !self.with_session(slot, |session, shared| session.defer_input(scratch, shared)) {
            self.with_session(slot, |session, shared| session.close(CloseReason::NoMemory, shared));
        }
    }

    /// Checks the invariants that hold between any two iterations. Looks at everything: for debug builds.
    ///
    /// # Panics
    /// An invariant does not hold.
    pub(super) fn check(&self) {
        let count = |is_counted: fn(&Entry) -> bool| {
            self.entries.iter().filter(|(_, entry)| is_counted(entry)).count()
        };
        assert_eq!(count(|entry| entry.stage != Stage::Http), self.websockets);
        assert_eq!(count(|entry| entry.listener == ListenerKind::Operator), self.operator_count);
        let ready: BTreeSet<usize> = self.ready.iter().copied().collect();
        assert!(
            self.entries
                .iter()
                .all(|(slot, entry)| entry.input == InputState::NotQueued || ready.contains(&slot))
        );
        let dirty: BTreeSet<usize> = self.dirty.iter().copied().collect();
        assert!(self.entries.iter().all(|(slot, entry)| !entry.dirty || dirty.contains(&slot)));
        for (_, entry) in &self.entries {
            assert!(
                entry.stage == Stage::WebSocket || !entry.session.is_open(),
                "an open WebSocket has a protocol"
            );
        }
    }

    /// Counts a connection for the client address that a trusted proxy reports.
    pub(super) fn count_address(&mut self, slot: usize, address: IpAddr) {
        let entry = &mut self.entries[slot];
        entry.address = address.into();
        entry.is_counted = true;
        self.per_ip.add(address.into());
    }

    /// Counts a connection as a WebSocket.
    pub(super) fn upgrade(&mut self, slot: usize) {
        let entry = &mut self.entries[slot];
        self.plain[entry.listener as usize].remove(&entry.conn.number());
        entry.stage = Stage::WebSocket;
        self.websockets += 1;
        self.shared.metrics.connections_total += 1;
    }

    /// Logs and counts a rejected upgrade. The response is sent by the session.
    pub(super) fn record_rejection(&mut self, slot: usize, status: u16, reason: &RejectReason) {
        let metrics = &mut self.shared.metrics;
        *metrics.refused_upgrades.entry(status).or_default() += 1;
        if let Some(fault) = reason.token_error {
            *metrics.refused_tokens.entry(fault.name()).or_default() += 1;
        }
        self.rejections += 1;
        if self.rejections <= REJECTIONS_LOGGED_MAX {
            info!("an upgrade from {} was refused: {status}, {}", self.entries[slot].address, reason.message);
        }
    }

    /// Returns whether upgrades were rejected since the last sweep, so that another sweep is due.
    pub(super) fn has_rejections_to_report(&self) -> bool {
        self.rejections > 0
    }

    /// Logs how many rejected upgrades had no line of their own since the last sweep.
    pub(super) fn report_rejections(&mut self) {
        let rejections = mem::take(&mut self.rejections);
        if let Some(more @ 1..) = rejections.checked_sub(REJECTIONS_LOGGED_MAX) {
            info!("and {more} more upgrades were refused");
        }
    }

    /// Logs and counts the departure of a WebSocket, which was this member.
    fn record_departure(
        &mut self,
        slot: usize,
        protocol: &'static Descriptor,
        member: &Member,
        room_count: Option<usize>,
    ) {
        let entry = &mut self.entries[slot];
        entry.stage = Stage::Left;
        let end =
            entry.session.close_reason().expect("a session that is not open has ended for a reason").name();
        *self.shared.metrics.closings.entry(end).or_default() += 1;
        let endpoint = &protocol.endpoint;
        let prefix = if endpoint.is_always_on { String::new() } else { format!("{} ", endpoint.name) };
        let place = match room_count {
            Some(count) => format!("rooms: {count}"),
            None => {
                let id = member.id.as_ref().map_or("no id".to_owned(), |id| format!("id {id:?}"));
                format!("room {:?}, {id}", member.room)
            }
        };
        info!(
            "connection {} from {} ended after {:.1} s: {end}; {prefix}{place}",
            entry.conn.number(),
            entry.address,
            (self.shared.now - entry.since.get()).as_secs_f64(),
        );
    }

    /// Removes a closed connection.
    pub(super) fn remove(&mut self, slot: usize) {
        let entry = self.entries.remove(slot);
        self.plain[entry.listener as usize].remove(&entry.conn.number());
        self.websockets -= usize::from(entry.stage != Stage::Http);
        self.operator_count -= usize::from(entry.listener == ListenerKind::Operator);
        debug!("connection {} from {} is closed", entry.conn.number(), entry.address);
        if entry.is_counted {
            self.per_ip.remove(entry.address);
        }
        entry.session.free(&mut self.shared);
    }
}

impl Outbox for Connections {
    fn can_queue(&mut self, to: Conn, texts: &[String]) -> bool {
        self.entries[to.slot()].session.can_queue(texts, &self.shared)
    }

    fn push_forwarded(&mut self, to: Conn, text: String) {
        self.work += 1;
        self.with_session(to.slot(), |session, shared| session.push_forwarded(text, shared));
    }

    fn broadcast(&mut self, to: &mut dyn Iterator<Item = Conn>, text: &str) -> usize {
        let frame = SharedFrame::text(text, &self.shared);
        let mut rejected = 0;
        for conn in to {
            self.work += 1;
            let session = &mut self.entries[conn.slot()].session;
            if session.forward_shared(&frame, &mut self.shared) {
                self.mark_dirty(conn.slot());
            } else {
                rejected += 1;
            }
        }
        rejected
    }

    fn is_congested(&self, to: Conn) -> bool {
        self.entries[to.slot()].session.is_congested(&self.shared)
    }

    fn has_unread_input(&self, conn: Conn) -> bool {
        self.entries[conn.slot()].input == InputState::Postponed
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        self.shared.budget.reserve(bytes)
    }

    fn send(&mut self, to: Conn, text: String) {
        self.work += 1;
        self.with_session(to.slot(), |session, shared| session.send(text, shared));
    }

    fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.work += 1;
        self.with_session(to.slot(), |session, shared| session.send_binary(bytes, shared));
    }

    fn ping(&mut self, to: Conn) {
        self.with_session(to.slot(), |session, shared| session.ping(shared));
    }

    fn pause_reading(&mut self, conn: Conn) {
        self.entries[conn.slot()].session.pause();
    }

    fn resume_reading(&mut self, conn: Conn) {
        self.entries[conn.slot()].session.resume(self.shared.now);
        self.mark_ready(conn.slot());
    }

    fn close(&mut self, conn: Conn, why: CloseCause) {
        let end = match why {
            CloseCause::Replaced => CloseReason::Replaced,
            CloseCause::RateLimited => CloseReason::RateLimited,
            CloseCause::Finished => CloseReason::Finished,
        };
        self.with_session(conn.slot(), |session, shared| session.close(end, shared));
    }

    fn record_registration(&mut self, conn: Conn, room: &str, id: &str) {
        let entry = &mut self.entries[conn.slot()];
        entry.session.on_registered();
        debug!("connection {} from {} registered: room {room:?}, id {id:?}", conn.number(), entry.address);
    }

    fn record_entry(&mut self, conn: Conn, room: &str) {
        let address = self.entries[conn.slot()].address;
        debug!("connection {} from {address} entered room {room:?}", conn.number());
    }

    fn record_limit(&mut self, conn: Conn, limit: &'static str) {
        let address = self.entries[conn.slot()].address;
        info!("connection {} from {address} has reached a limit: {limit}", conn.number());
    }

    fn record_refused_token(&mut self, conn: Conn, error: TokenError) {
        let address = self.entries[conn.slot()].address;
        debug!("connection {} from {address}: {}", conn.number(), error.message());
        *self.shared.metrics.refused_tokens.entry(error.name()).or_default() += 1;
    }

    fn record_departure(
        &mut self,
        conn: Conn,
        protocol: &'static Descriptor,
        member: &Member<'_>,
        room_count: Option<usize>,
    ) {
        self.record_departure(conn.slot(), protocol, member, room_count);
    }
}

impl session::Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}
