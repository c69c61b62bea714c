//! What waits to be sent to one peer.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use super::frame;
use crate::limits::STALL_TIME_MAX;

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
    pub fn len(&self) -> usize {
        self.bytes.len()
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

    /// Notes that something found no room. Who has taken all is not slow, whatever does not fit.
    pub fn refuse(&mut self) {
        self.refused = !self.bytes.is_empty();
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
