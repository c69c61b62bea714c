//! What is under way in a session: a frame or a message that is coming in, and what waits to go out.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::time::Duration;

use tungstenite::protocol::{Role, WebSocketContext};

use super::shared::Shared;
use crate::budget::Budget;
use crate::config::{CODEC_BYTES, QUEUE_BYTES_SPARE};
use crate::frame;

#[allow(clippy::vec_box, reason = "sessions take them as they are")]
pub type Spare = Vec<Box<Work>>;

/// What is under way in a session.
#[derive(Default)]
pub struct Work {
    /// The head of the request, or the header of a frame, or a Close, as far as it came.
    pub begun: Vec<u8>,
    /// Bytes of a frame that are still to come.
    pub to_come: usize,
    /// Whether a message is fragmented and its last frame has not begun.
    pub unfinished: bool,
    /// Bytes of the message that is coming in, those that are announced included.
    pub incoming: usize,
    pub codec: Option<WebSocketContext>,
    /// What waits to be sent.
    pub queue: Vec<u8>,
    /// When the peer last took a byte, or the queue ceased to be empty.
    pub progress: Duration,
    /// Whether something found no room in the queue since the peer last took a byte.
    pub full: bool,
    /// What was thrown away while draining.
    pub thrown_away: usize,
    /// What the budget counts for it.
    pub charged: usize,
}

impl Work {
    /// Whether the next byte begins a message, or a control frame between messages.
    pub fn is_between_messages(&self) -> bool {
        self.begun.is_empty() && self.to_come == 0 && !self.unfinished
    }

    /// Queues a frame of ours.
    #[inline]
    pub fn push(&mut self, opcode: u8, payload: &[u8], shared: &mut Shared) {
        if self.queue.is_empty() {
            self.progress = shared.now;
        }
        frame::push(&mut self.queue, opcode, payload);
        self.charge(&mut shared.budget);
    }

    /// Has the budget count what it uses now.
    pub fn charge(&mut self, budget: &mut Budget) {
        let buffers = self.begun.capacity() + self.queue.capacity();
        // The codec's buffers grow by doubling.
        let codec = if self.codec.is_some() { CODEC_BYTES + 2 * self.incoming } else { 0 };
        let charged = buffers + codec;
        budget.change(mem::replace(&mut self.charged, charged), charged);
    }

    /// The codec, and the stream that it is to see: these bytes to read, and the queue to write to. What is said last
    /// is said even to a full queue.
    pub fn codec<'a>(
        &'a mut self,
        unread: [&'a [u8]; 2],
        last: bool,
        shared: &Shared,
    ) -> (&'a mut WebSocketContext, Wire<'a>) {
        if self.queue.is_empty() {
            self.progress = shared.now;
        }
        let max = shared.config.queue_bytes_max() + QUEUE_BYTES_SPARE;
        let room = if last { usize::MAX } else { max.saturating_sub(self.queue.len()) };
        let new = || WebSocketContext::new(Role::Server, Some(shared.codec_config));
        let codec = self.codec.get_or_insert_with(new);
        (codec, Wire { unread, queue: &mut self.queue, room })
    }

    /// Queues what the codec has to say, and returns whether that was all of it.
    pub fn push_codec(&mut self, last: bool, shared: &Shared) -> bool {
        if self.codec.is_none() {
            return true;
        }
        let (codec, mut wire) = self.codec([&[], &[]], last, shared);
        // Twice, because a pong that found no room in the codec is there only after the first.
        codec.flush(&mut wire).and_then(|()| codec.flush(&mut wire)).is_ok()
    }

    /// Writes as much of the queue as the stream takes. Returns how much that was.
    pub fn write(&mut self, stream: &mut impl Write, now: Duration) -> io::Result<usize> {
        let mut written = 0;
        while !self.queue.is_empty() {
            match stream.write(&self.queue) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.queue.drain(..n);
                    self.progress = now;
                    self.full = false;
                    written += n;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

/// The stream as the codec sees it: it reads one frame from the scratch, and writes to the queue.
pub struct Wire<'a> {
    /// The header, if it was not read before, and as much of the payload as there is.
    unread: [&'a [u8]; 2],
    queue: &'a mut Vec<u8>,
    /// How much may be written.
    room: usize,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.unread.iter_mut().find(|unread| !unread.is_empty()) {
            Some(unread) => unread.read(buffer),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.room {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= bytes.len();
        self.queue.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The work of a session, which begins now if it has none.
pub fn begin<'a>(work: &'a mut Option<Box<Work>>, spare: &mut Spare) -> &'a mut Work {
    work.get_or_insert_with(|| spare.pop().unwrap_or_default())
}
