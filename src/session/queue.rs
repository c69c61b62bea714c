//! What waits to be sent to one peer.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use super::work::{Shared, Work};
use super::{End, Session, Stream, frame};
use crate::limits::{ALWAYS_HELD_BYTES, STALL_TIME_MAX};

impl<S: Stream> Session<S> {
    /// Whether all of these find room in the queue. A session that is no longer open takes, and forgets, all.
    pub fn has_room(&mut self, texts: &[String], shared: &Shared) -> bool {
        self.has_room_for(texts.iter().map(|text| frame::len(text.len())).sum(), shared)
    }

    fn has_room_for(&mut self, bytes: usize, shared: &Shared) -> bool {
        let queued = self.work.as_ref().map_or(0, |work| work.queue.bytes.len());
        // A queue that grows may come to have twice the room it needs.
        let fits_budget = || queued + bytes <= ALWAYS_HELD_BYTES || shared.budget.allows(queued + 2 * bytes);
        let fits = !self.is_open() || (queued + bytes <= shared.config.queue_bytes_max() && fits_budget());
        // Who has taken all is not slow, whatever does not fit.
        if let Some(work) = self.work.as_mut().filter(|_| !fits && queued > 0) {
            work.queue.refused = true;
        }
        fits
    }

    /// Queues a message of the server's own. A peer that would miss it, because its queue is full, or the memory is
    /// used up, is closed.
    pub fn send(&mut self, text: String, shared: &mut Shared) {
        self.send_frame(frame::TEXT, text.as_bytes(), shared);
    }

    /// The same for a message of bytes.
    pub fn send_binary(&mut self, bytes: &[u8], shared: &mut Shared) {
        self.send_frame(frame::BINARY, bytes, shared);
    }

    fn send_frame(&mut self, opcode: u8, payload: &[u8], shared: &mut Shared) {
        if !self.is_open() {
            return;
        }
        if self.has_room_for(frame::len(payload.len()), shared) {
            self.queue(shared, |queue, now| queue.push(opcode, payload, now));
        } else if shared.budget.allows(2 * shared.config.queue_bytes_max()) {
            self.close(End::Slow, shared);
        } else {
            self.close(End::NoMemory, shared);
        }
    }

    /// Queues a ping.
    pub fn ping(&mut self, shared: &mut Shared) {
        if self.is_open() {
            self.queue(shared, |queue, now| queue.push(frame::PING, &[], now));
        }
    }

    /// Does something with the queue, and has the budget count what that needs.
    #[inline]
    pub(super) fn queue(&mut self, shared: &mut Shared, change: impl FnOnce(&mut Queue, Duration)) {
        let work = Work::begin(&mut self.work, shared);
        change(&mut work.queue, shared.now);
        work.charge(&mut shared.budget);
    }
}

/// Bytes in the order in which they go out, and the pong that found no room among them.
#[derive(Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    /// When the peer last took a byte, or the queue ceased to be empty.
    progress: Duration,
    /// Whether something found no room since the peer last took a byte.
    refused: bool,
    /// What the last ping said, as long as there is no room to answer it.
    unanswered: Option<Vec<u8>>,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of memory.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Puts the answer to a request where nothing waits.
    pub fn respond(&mut self, response: Vec<u8>, now: Duration) {
        self.bytes = response;
        self.progress = now;
    }

    /// Appends a frame of ours.
    #[inline]
    pub fn push(&mut self, opcode: u8, payload: &[u8], now: Duration) {
        if self.bytes.is_empty() {
            self.progress = now;
        }
        frame::push(&mut self.bytes, opcode, payload);
    }

    /// Appends a pong, as soon as there is room for it: no more may wait than this. Of several pings that wait for that,
    /// only the last is answered (RFC 6455 section 5.5.3).
    pub fn answer_ping(&mut self, payload: Vec<u8>, max: usize, now: Duration) {
        self.unanswered = Some(payload);
        self.push_pong(max, now);
    }

    fn push_pong(&mut self, max: usize, now: Duration) {
        let fits = |payload: &mut Vec<u8>| self.bytes.len() + frame::len(payload.len()) <= max;
        if let Some(payload) = self.unanswered.take_if(fits) {
            self.push(frame::PONG, &payload, now);
        }
    }

    /// Appends a Close, whatever there is room for, and before it the pong that still waits.
    pub fn push_close(&mut self, payload: &[u8], now: Duration) {
        self.push_pong(usize::MAX, now);
        self.push(frame::CLOSE, payload, now);
    }

    /// Whether more waits than may, and nothing of it is taken.
    pub fn is_stalled(&self, max: usize, now: Duration) -> bool {
        (self.refused || self.bytes.len() > max) && now - self.progress >= STALL_TIME_MAX
    }

    /// Writes as much as the stream takes. Returns how much that was.
    pub fn write(&mut self, stream: &mut impl Write, max: usize, now: Duration) -> io::Result<usize> {
        let mut written = 0;
        loop {
            self.push_pong(max, now);
            if self.bytes.is_empty() {
                return Ok(written);
            }
            match stream.write(&self.bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.bytes.drain(..n);
                    self.progress = now;
                    self.refused = false;
                    written += n;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(written),
                Err(error) => return Err(error),
            }
        }
    }
}
