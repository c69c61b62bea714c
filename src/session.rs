//! Handles the bytes of one connection, from its request to its close.
//!
//! | phase         | input                               | output                             | next phase                   |
//! |---------------|-------------------------------------|------------------------------------|------------------------------|
//! | `RequestHead` | the request head                    | none                               | `Open`, `Flushing`, `Closed` |
//! | `Open`        | messages, pings, pongs              | the outbound queue                 | `Closing`, `Flushing`        |
//! | `Closing`     | discarded, except for a Close frame | the outbound queue, then our Close | see below                    |
//! | `Flushing`    | discarded                           | the outbound queue                 | `Lingering`, `Closed`        |
//! | `Lingering`   | discarded                           | none: the write side is shut down  | `Closed`                     |
//! | `Closed`      | none                                | none                               | none: the session is dropped |
//!
//! `Closing` leads to `Flushing` when the Close frame of the peer arrives, and to `Closed`. A session that ends without a Close
//! frame, see [`Session::end_without_close_frame`], sends none in `Closing`, which leads to `Lingering` when the queue is empty.
//!
//! A TCP error leads to `Closed` from every phase. Every phase has a deadline, see [`Session::tick`]: it leads from
//! `RequestHead` to `Flushing` with a 408 response, from `Open` to `Closing`, and from the later phases to `Closed`. The
//! deadline of `Open` is removed when the peer registers an id. [`Session::close`] leads from `RequestHead` to `Closed`.
//!
//! A session owns its stream; tests use a pair of buffers as a stream. It reads only in [`Session::read`] and writes only
//! in [`Session::flush`]. Everything else happens in memory, so that a burst of messages goes out in one write. All
//! sessions read into the same [`Scratch`]: before another session reads, the caller calls [`Session::next_event`] until
//! the scratch is empty, or stores the rest with [`Session::defer_input`]. An idle session, without partial input and
//! without queued output, owns no buffers.

mod buffers;
mod close;
pub mod frame;
mod inbound;
mod queue;
mod request_head;
mod shared_frame;

use std::io::{self, ErrorKind, Read, Write};
use std::str;
use std::time::Duration;

use crate::http::RejectReason;
use crate::limits::{CLOSE_TIME_MAX, CONNECTION_BYTES, LINGER_BYTES_MAX};
use crate::message::Message;
use crate::timestamp::Timestamp;
use buffers::Buffers;
use inbound::Taken;

pub use buffers::SharedState;
pub use close::CloseReason;
pub use inbound::Scratch;
pub use shared_frame::SharedFrame;

/// Represents a byte stream whose write side can be shut down separately.
pub trait Stream: Read + Write {
    /// Shuts down the write side, so that the peer reads the end of the stream.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// Represents input that the server has to handle.
#[derive(Debug)]
pub enum Event<'a> {
    /// A complete request head. The server responds with [`Session::accept`] or [`Session::respond`].
    Request(Vec<u8>),
    /// An invalid request for a WebSocket. The session has sent a response with this status for this reason.
    Rejected(u16, RejectReason),
    /// A complete message.
    Message(Message<'a>),
    /// A ping with its payload. The server replies with [`Session::pong`].
    Ping(Vec<u8>),
    /// A pong or a small fragment. The server only charges the rate limit for it.
    Overhead,
}

/// Describes the result of [`Session::read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The read filled the scratch. The kernel may have more bytes, for which epoll reports no further event.
    Full,
    /// The read was short, which proves that the kernel has no more bytes (epoll(7)).
    Short,
    /// The scratch contains input that [`Session::defer_input`] stored. The stream was not read and may have more bytes.
    Deferred,
    /// The stream has no bytes at the moment.
    WouldBlock,
    /// The stream has ended or failed.
    EndOfStream,
}

/// Enumerates the phases in the table of the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    RequestHead,
    Open,
    Closing,
    Flushing,
    Lingering,
    Closed,
}

/// Holds the state of one connection.
pub struct Session<S> {
    stream: S,
    phase: Phase,
    /// Why the session ends. `None` until that is decided.
    close_reason: Option<CloseReason>,
    /// When the current phase times out.
    deadline: Option<Timestamp>,
    /// When the current ping interval started: at the last activity of the peer or at the last ping, if that is later.
    ping_interval_start: Timestamp,
    /// Whether a ping was sent since the last activity of the peer.
    is_ping_outstanding: bool,
    /// Pings that were queued and whose pongs have not arrived.
    awaited_pongs: u8,
    /// Whether the outbound queue has the capacity of a protocol with large queues.
    has_large_queue: bool,
    /// Whether the only Close frame that is sent is the answer to that of the peer.
    ends_without_close_frame: bool,
    /// Whether the caller has paused reading.
    is_read_paused: bool,
    /// Whether both sides have sent a Close frame.
    close_handshake_done: bool,
    /// Whether the last read has emptied the receive buffer of the kernel.
    is_receive_buffer_empty: bool,
    /// Whether the peer has closed its write side, or the stream has failed.
    peer_closed_write: bool,
    /// Partial input and queued output. `None` while the session is idle.
    buffers: Option<Box<Buffers>>,
}

impl<S: Stream> Session<S> {
    /// Creates the session of a connection that was just accepted.
    ///
    /// The request head must arrive within `head_time`.
    pub fn new(stream: S, head_time: Duration, shared: &mut SharedState) -> Session<S> {
        shared.budget.change(0, CONNECTION_BYTES);
        Session {
            stream,
            phase: Phase::RequestHead,
            close_reason: None,
            deadline: Some((shared.now + head_time).into()),
            ping_interval_start: shared.now.into(),
            is_ping_outstanding: false,
            awaited_pongs: 0,
            has_large_queue: false,
            ends_without_close_frame: false,
            is_read_paused: false,
            close_handshake_done: false,
            is_receive_buffer_empty: false,
            peer_closed_write: false,
            buffers: None,
        }
    }

    /// Drops the session and releases its memory budget.
    pub fn free(self, shared: &mut SharedState) {
        if let Some(buffers) = self.buffers {
            buffers.free(&mut shared.budget);
        }
        shared.budget.change(CONNECTION_BYTES, 0);
    }

    /// Returns whether messages can be exchanged.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Returns whether the session is finished and can be dropped.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Returns since when the last output of the session is being sent. `None`: it is not.
    pub fn flushing_since(&self) -> Option<Duration> {
        let deadline = self.deadline.filter(|_| self.phase == Phase::Flushing)?;
        Some(deadline.get().saturating_sub(CLOSE_TIME_MAX))
    }

    /// Returns why the session ends, or `None` while it is in use.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason
    }

    /// Returns whether the session owns no buffers.
    pub fn is_idle(&self) -> bool {
        self.buffers.is_none()
    }

    /// Returns the stream, for tests.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Gives the outbound queue the capacity of a protocol with large queues.
    pub fn enlarge_queue(&mut self) {
        self.has_large_queue = true;
    }

    /// Sends no Close frame from now on, except to answer that of the peer: for every other reason, the queue is flushed and then
    /// TCP ends.
    ///
    /// It is for protocols whose clients notice the end of TCP, but not a Close frame.
    pub fn end_without_close_frame(&mut self) {
        self.ends_without_close_frame = true;
    }

    // ---- Input ----

    /// Pauses reading until [`Session::resume`], after which the caller calls [`Session::read`].
    ///
    /// The ping interval does not elapse during a pause.
    pub fn pause(&mut self) {
        self.is_read_paused = true;
    }

    /// Resumes reading.
    pub fn resume(&mut self, now: Duration) {
        self.is_read_paused = false;
        self.record_activity(now);
    }

    /// Resumes reading if the session is closing, and returns whether it did.
    ///
    /// If so, the caller calls [`Session::read`].
    pub fn resume_if_closing(&mut self) -> bool {
        if self.is_open() {
            return false;
        }
        let was_paused = self.is_read_paused;
        self.is_read_paused = false;
        was_paused
    }

    /// Returns whether reading is paused.
    ///
    /// A closing session is never paused, because it waits for the peer's Close frame.
    pub fn is_paused(&self) -> bool {
        self.is_read_paused && self.is_open()
    }

    /// Records that the peer has closed the connection or that TCP has failed.
    pub fn on_disconnected(&mut self) {
        self.peer_closed_write = true;
        self.mark_closed(CloseReason::Lost);
    }

    /// Reads once into the scratch.
    ///
    /// The caller then calls [`Session::next_event`] until it returns `None`.
    pub fn read(&mut self, scratch: &mut Scratch, shared: &mut SharedState) -> ReadOutcome {
        debug_assert!(scratch.unread.is_empty(), "input of another session was not handled");
        scratch.unread = 0..0;
        if self.restore_deferred_input(scratch, shared) {
            return ReadOutcome::Deferred;
        }
        let result = loop {
            match self.stream.read(&mut scratch.bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Ok(n) if n > 0 => {
                scratch.unread = 0..n;
                shared.metrics.bytes_in += n as u64;
                self.record_activity(shared.now);
                self.is_receive_buffer_empty = n < scratch.bytes.len();
                if self.is_receive_buffer_empty { ReadOutcome::Short } else { ReadOutcome::Full }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_receive_buffer_empty = true;
                ReadOutcome::WouldBlock
            }
            end_or_error => {
                self.peer_closed_write = true;
                // A peer that has only shut down its write side can still read a queued response.
                let can_flush = end_or_error.is_ok() && self.phase == Phase::Flushing;
                if !can_flush {
                    self.mark_closed(CloseReason::Lost);
                }
                ReadOutcome::EndOfStream
            }
        }
    }

    /// Returns the next event in the scratch, or `None` when the scratch is empty.
    pub fn next_event<'a>(
        &mut self,
        scratch: &'a mut Scratch,
        shared: &mut SharedState,
    ) -> Option<Event<'a>> {
        while !scratch.unread.is_empty() {
            match self.phase {
                Phase::RequestHead => {
                    if let Some(event) = self.take_request_head(scratch, shared) {
                        return Some(event);
                    }
                }
                Phase::Open | Phase::Closing => match self.take_frame(scratch, shared) {
                    Ok(Taken::MessageInPlace { payload, is_text }) if self.is_open() => {
                        let bytes = &scratch.bytes[payload];
                        if !is_text {
                            return Some(Event::Message(Message::Binary(bytes)));
                        }
                        let Ok(text) = str::from_utf8(bytes) else {
                            // Input after an invalid message is discarded.
                            scratch.unread = 0..0;
                            self.close_with_error(CloseReason::NotUtf8, shared);
                            return None;
                        };
                        return Some(Event::Message(Message::Text(text)));
                    }
                    Ok(Taken::MessageFromCodec) if self.is_open() => {
                        return match &scratch.message {
                            tungstenite::Message::Text(text) => Some(Event::Message(Message::Text(text))),
                            tungstenite::Message::Binary(data) => Some(Event::Message(Message::Binary(data))),
                            _ => unreachable!("the codec gets only data frames"),
                        };
                    }
                    Ok(Taken::Ping(payload)) if self.is_open() => return Some(Event::Ping(payload)),
                    Ok(Taken::Overhead) if self.is_open() => return Some(Event::Overhead),
                    Ok(_) => {}
                    Err(reason) => self.close_with_error(reason, shared),
                },
                Phase::Flushing | Phase::Lingering => {
                    let buffers = Buffers::acquire(&mut self.buffers, shared);
                    buffers.discarded_bytes += scratch.clear();
                    if buffers.discarded_bytes > LINGER_BYTES_MAX {
                        self.phase = Phase::Closed;
                    }
                }
                Phase::Closed => {
                    scratch.clear();
                }
            }
        }
        None
    }

    /// Restarts the ping interval because the peer is alive.
    fn record_activity(&mut self, now: Duration) {
        self.ping_interval_start = now.into();
        self.is_ping_outstanding = false;
    }

    // ---- Output ----

    /// Writes queued output until the queue is empty or the stream blocks.
    ///
    /// Returns whether this proves that the peer is alive: after the send buffer of the kernel was full, the stream has
    /// accepted bytes again, so that the peer's TCP has acknowledged some.
    pub fn flush(&mut self, shared: &mut SharedState) -> bool {
        if self.is_closed() {
            return false;
        }
        let queue_max = self.queue_bytes_max(shared);
        let Some(buffers) = &mut self.buffers else {
            return false;
        };
        let result = buffers.queue.write(&mut self.stream, queue_max, shared.now);
        buffers.update_budget(&mut shared.budget);
        let is_empty = buffers.queue.is_empty();
        let mut is_alive = false;
        match result {
            Ok(written) => {
                shared.metrics.bytes_out += written.bytes as u64;
                is_alive = written.acknowledged;
            }
            Err(_) => self.mark_closed(CloseReason::Lost),
        }
        if is_alive {
            self.record_activity(shared.now);
        }
        if is_empty {
            self.on_queue_empty(shared);
        }
        is_alive && self.is_open()
    }

    /// Recycles the buffers of an open session, and advances the phase of a closing one.
    fn on_queue_empty(&mut self, shared: &mut SharedState) {
        match self.phase {
            Phase::Open => {
                let idle_buffers = self.buffers.take_if(|buffers| buffers.inbound.is_idle());
                if let Some(buffers) = idle_buffers {
                    buffers.recycle(shared);
                }
            }
            Phase::Flushing => {
                // After the close handshake the server closes TCP at once (RFC 6455 section 7.1.1). If the receive buffer
                // of the kernel holds unread bytes, close(2) sends a reset, which may destroy the last output.
                let can_close_now = self.close_handshake_done && self.is_receive_buffer_empty;
                if self.peer_closed_write || can_close_now {
                    self.phase = Phase::Closed;
                } else {
                    self.begin_lingering(shared);
                }
            }
            Phase::Closing if self.ends_without_close_frame => self.begin_lingering(shared),
            Phase::RequestHead | Phase::Closing | Phase::Lingering | Phase::Closed => {}
        }
    }

    /// Shuts down the write side and waits for the peer to close.
    fn begin_lingering(&mut self, shared: &mut SharedState) {
        if self.stream.shutdown_write().is_err() {
            self.phase = Phase::Closed;
            return;
        }
        if let Some(buffers) = self.buffers.take() {
            buffers.free(&mut shared.budget);
        }
        self.enter_phase(Phase::Lingering, shared.now);
    }

    // ---- Close and timeouts ----

    /// Removes the deadline of the phase `Open` because the peer has registered an id.
    pub fn on_registered(&mut self) {
        if self.is_open() {
            self.deadline = None;
        }
    }

    /// Sends a Close frame and waits for the Close frame of the peer.
    ///
    /// A session that ends without a Close frame sends what is queued and then ends TCP.
    /// A connection without a complete request head is closed at once. A session that already closes does not change.
    pub fn close(&mut self, reason: CloseReason, shared: &mut SharedState) {
        match self.phase {
            Phase::RequestHead => self.mark_closed(reason),
            Phase::Open => {
                self.send_close(reason, shared);
                self.close_reason = Some(reason);
                self.enter_phase(Phase::Closing, shared.now);
            }
            Phase::Closing | Phase::Flushing | Phase::Lingering | Phase::Closed => {}
        }
    }

    /// Closes a connection that is not a WebSocket, to free its slot for a new connection.
    ///
    /// A request whose head is incomplete gets a 408 response, as far as the stream takes it without blocking.
    pub fn evict(&mut self, shared: &mut SharedState) {
        if self.phase == Phase::RequestHead {
            self.respond_timeout(shared);
            self.flush(shared);
        }
        self.mark_closed(CloseReason::Http);
    }

    /// Sends a Close frame, unless the session ends without one, and discards all further input, because the input is invalid.
    fn close_with_error(&mut self, reason: CloseReason, shared: &mut SharedState) {
        self.send_close(reason, shared);
        self.begin_flushing(reason, shared.now);
    }

    /// Queues the Close frame for this reason, if the session is open and does not end without one.
    fn send_close(&mut self, reason: CloseReason, shared: &mut SharedState) {
        if !self.is_open() {
            return;
        }
        if self.ends_without_close_frame {
            // The next flush advances the phase even if nothing is queued. It does nothing without buffers.
            Buffers::acquire(&mut self.buffers, shared);
            return;
        }
        if let Some(payload) = reason.close_payload() {
            self.update_queue(shared, |queue, now| queue.push_close(&payload, now));
        }
    }

    /// Enters the phase in which only queued output is sent.
    fn begin_flushing(&mut self, reason: CloseReason, now: Duration) {
        self.close_reason.get_or_insert(reason);
        self.enter_phase(Phase::Flushing, now);
    }

    /// Enters a closing phase and starts its deadline.
    fn enter_phase(&mut self, phase: Phase, now: Duration) {
        self.phase = phase;
        self.deadline = Some((now + CLOSE_TIME_MAX).into());
    }

    /// Enters the last phase without sending anything.
    ///
    /// An earlier close reason is kept. A connection that never sent a request is counted as HTTP.
    fn mark_closed(&mut self, reason: CloseReason) {
        let reason = if self.phase == Phase::RequestHead { CloseReason::Http } else { reason };
        self.close_reason.get_or_insert(reason);
        self.phase = Phase::Closed;
    }

    /// Handles the deadline of the phase, a stalled queue and the ping interval.
    ///
    /// The server calls this about once a second. Returns whether the caller must flush the session.
    pub fn tick(&mut self, shared: &mut SharedState) -> bool {
        let now = shared.now;
        if self.deadline.is_some_and(|deadline| deadline.get() <= now) {
            self.on_deadline(shared);
            return true;
        }
        if !self.is_open() {
            return false;
        }
        let elapsed = now - self.ping_interval_start.get();
        let is_interval_over = !self.is_read_paused && elapsed >= shared.config.ping_interval;
        if is_interval_over && self.is_ping_outstanding {
            self.close(CloseReason::Silent, shared);
            return true;
        }
        let queue_max = self.queue_bytes_max(shared);
        let is_stalled =
            self.buffers.as_ref().is_some_and(|buffers| buffers.queue.is_stalled(queue_max, now));
        if is_stalled {
            self.close(CloseReason::Slow, shared);
            return true;
        }
        if is_interval_over {
            self.ping_interval_start = now.into();
            self.is_ping_outstanding = true;
            self.ping(shared);
            return true;
        }
        // epoll reports a socket as writable when much of its buffer is free. A slow peer shows life long before that.
        self.buffers.as_ref().is_some_and(|buffers| buffers.queue.is_blocked())
    }

    /// Handles the expired deadline of the current phase.
    fn on_deadline(&mut self, shared: &mut SharedState) {
        match self.phase {
            Phase::RequestHead => self.respond_timeout(shared),
            Phase::Open => self.close(CloseReason::Unregistered, shared),
            Phase::Closing | Phase::Flushing | Phase::Lingering | Phase::Closed => self.phase = Phase::Closed,
        }
    }
}
