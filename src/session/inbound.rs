//! What comes in: frame by frame, out of what the last read brought.
//!
//! A message that came whole, in one frame, is taken where it lies. A control frame is gathered until it is whole.
//! What else RFC 6455 allows, messages in fragments and of several reads, goes through tungstenite's codec, frame by
//! frame; its state is nothing whenever no message is begun, and it can be dropped then.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::ops::Range;

use tungstenite::Message;
use tungstenite::error::Error;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use super::buffers::{Shared, Work};
use super::frame::{self, Header};
use super::{End, Session, Stream};
use crate::limits::{ALWAYS_HELD_BYTES, CODEC_BYTES, FRAGMENT_BYTES_FREE, READ_BYTES_MAX};
use crate::memory_budget::Budget;

/// What the last read brought, and what was made of it. All sessions share one: who has read takes it all before
/// another reads.
pub struct Scratch {
    pub(super) bytes: Box<[u8]>,
    /// The part of the bytes that is not yet taken.
    pub(super) unread: Range<usize>,
    /// The last message that a codec gave.
    pub(super) message: Message,
}

impl Default for Scratch {
    fn default() -> Scratch {
        let bytes = vec![0; READ_BYTES_MAX].into_boxed_slice();
        Scratch { bytes, unread: 0..0, message: Message::Close(None) }
    }
}

impl Scratch {
    /// Takes a part of the bytes that are not yet taken, and no more than this.
    pub(super) fn take(&mut self, max: usize) -> &[u8] {
        let start = self.unread.start;
        self.unread.start += max.min(self.unread.len());
        &self.bytes[start..self.unread.start]
    }

    /// Nothing of it matters any more. Returns how much that was.
    pub fn clear(&mut self) -> usize {
        mem::take(&mut self.unread).len()
    }

    /// Takes a message, if there is a whole one in one frame, and nothing before it.
    pub(super) fn take_message(&mut self, payload_max: usize) -> Result<Option<Taken>, End> {
        let header = Header::parse(&self.bytes[self.unread.clone()], payload_max)?;
        let is_whole = |header: &Header| header.is_message() && header.len() <= self.unread.len();
        let Some(header) = header.filter(is_whole) else { return Ok(None) };
        let start = self.unread.start + header.bytes;
        let payload = start..start + header.payload;
        frame::unmask(&mut self.bytes[payload.clone()], header.mask);
        self.unread.start = payload.end;
        Ok(Some(Taken::Here(payload, header.opcode == frame::TEXT)))
    }
}

impl<S: Stream> Session<S> {
    /// Takes what there is of one frame.
    pub(super) fn take_frame(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Result<Taken, End> {
        let max = shared.config.message_bytes_max;
        if self.work.as_ref().is_none_or(|work| work.inbound.is_between_messages())
            && let Some(message) = scratch.take_message(max)?
        {
            return Ok(message);
        }
        let work = Work::begin(&mut self.work, shared);
        let taken = work.inbound.take(scratch, max, &shared.budget);
        work.charge(&mut shared.budget);
        match taken? {
            Taken::Control(frame::CLOSE) => {
                let payload = mem::take(&mut work.inbound.begun);
                self.take_close(&payload, shared)?;
                Ok(Taken::Part)
            }
            Taken::Control(frame::PING) => Ok(Taken::Ping(mem::take(&mut work.inbound.begun))),
            Taken::Control(_) => {
                work.inbound.begun = Vec::new();
                Ok(Taken::Overhead)
            }
            taken => Ok(taken),
        }
    }

    /// Handles a Close frame: it is answered with the same status code, or is the answer to ours.
    fn take_close(&mut self, payload: &[u8], shared: &mut Shared) -> Result<(), End> {
        frame::check_close(payload)?;
        if self.is_open() {
            self.queue(shared, |queue, now| queue.push_close(payload, now));
        }
        self.closed = true;
        self.finish(End::Left, shared.now);
        Ok(())
    }

    /// Sets aside what was read and not yet handled, for the next [`Session::fill`]. Returns whether the memory limit
    /// allows that; if not, nothing changes.
    pub fn hold(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> bool {
        let bytes = scratch.unread.len();
        if bytes == 0 {
            return true;
        }
        if bytes > ALWAYS_HELD_BYTES && !shared.budget.allows(bytes) {
            return false;
        }
        let work = Work::begin(&mut self.work, shared);
        work.inbound.held = scratch.take(bytes).to_vec();
        work.charge(&mut shared.budget);
        true
    }

    /// Puts what was set aside back into the scratch. Returns whether there was anything.
    pub(super) fn take_held(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> bool {
        let Some(work) = self.work.as_mut().filter(|work| !work.inbound.held.is_empty()) else {
            return false;
        };
        let held = mem::take(&mut work.inbound.held);
        scratch.bytes[..held.len()].copy_from_slice(&held);
        scratch.unread = 0..held.len();
        work.charge(&mut shared.budget);
        true
    }
}

/// What was taken from the scratch.
pub(super) enum Taken {
    /// A message that lies there, unmasked, and whether it is text.
    Here(Range<usize>, bool),
    /// A message that the codec has put there.
    Message,
    /// A control frame, of this opcode. What was begun is its payload.
    Control(u8),
    /// A ping, with this payload.
    Ping(Vec<u8>),
    /// A frame without any further meaning that costs work: a pong, or a small fragment.
    Overhead,
    /// Something that is not yet whole.
    Part,
}

/// What is coming in, and is not yet whole.
#[derive(Default)]
pub(super) struct Inbound {
    /// The head of the request, or the header of a frame, or a control frame, as far as it came.
    pub begun: Vec<u8>,
    /// Input that was read and is not yet handled: see [`Session::hold`]. At most [`READ_BYTES_MAX`].
    pub held: Vec<u8>,
    /// Bytes of a frame that are still to come.
    to_come: usize,
    /// Whether a message is fragmented and its last frame has not begun.
    unfinished: bool,
    /// Bytes of the message that is coming in, those that are announced included.
    announced: usize,
    codec: Option<WebSocketContext>,
}

impl Inbound {
    /// Whether the next byte begins a message, or a control frame between messages.
    pub fn is_between_messages(&self) -> bool {
        self.begun.is_empty() && self.to_come == 0 && !self.unfinished
    }

    /// Returns whether nothing is stored that a later read needs.
    pub fn is_at_rest(&self) -> bool {
        self.is_between_messages() && self.held.is_empty()
    }

    /// Drops all but what is useful to any other session.
    pub fn rest(&mut self) {
        self.codec = None;
    }

    /// Bytes of memory. The codec's buffers grow by doubling.
    pub fn capacity(&self) -> usize {
        let codec = if self.codec.is_some() { CODEC_BYTES + 2 * self.announced } else { 0 };
        self.begun.capacity() + self.held.capacity() + codec
    }

    /// Takes what there is of one frame.
    pub fn take(&mut self, scratch: &mut Scratch, max: usize, budget: &Budget) -> Result<Taken, End> {
        let mut begun = Vec::new();
        let mut is_small_fragment = false;
        if self.to_come == 0 {
            let Some(header) = self.gather(scratch, max)? else { return Ok(Taken::Part) };
            if header.is_control() {
                self.begun.drain(..header.bytes);
                frame::unmask(&mut self.begun, header.mask);
                return Ok(Taken::Control(header.opcode));
            }
            begun = mem::take(&mut self.begun);
            // The last fragment is paid for with the message.
            is_small_fragment = !header.fin && header.payload < FRAGMENT_BYTES_FREE;
            self.announce(header, max, budget)?;
        }
        let payload = scratch.take(self.to_come);
        self.to_come -= payload.len();
        let new = || {
            let config = WebSocketConfig::default().read_buffer_size(CODEC_BYTES);
            let config = config.max_message_size(Some(max)).max_frame_size(Some(max));
            WebSocketContext::new(Role::Server, Some(config))
        };
        let codec = self.codec.get_or_insert_with(new);
        let read = codec.read(&mut Unread([&begun, payload]));
        if self.is_between_messages() {
            self.announced = 0;
            // Its buffers have the size of the message, and are not counted any more.
            self.codec = None;
        }
        match read {
            Ok(message) => {
                scratch.message = message;
                Ok(Taken::Message)
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock && is_small_fragment => {
                Ok(Taken::Overhead)
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(Taken::Part),
            Err(error) => Err(error.into()),
        }
    }

    /// Gathers the header of a frame, or, because they shall take nothing while they wait, all of a control frame.
    fn gather(&mut self, scratch: &mut Scratch, payload_max: usize) -> Result<Option<Header>, End> {
        let had = self.begun.len();
        let unread = scratch.unread.clone();
        self.begun.extend_from_slice(scratch.take(frame::CONTROL_FRAME_BYTES_MAX - had));
        let Some(header) = Header::parse(&self.begun, payload_max)? else { return Ok(None) };
        let needed = if header.is_control() { header.len() } else { header.bytes };
        if self.begun.len() < needed {
            return Ok(None);
        }
        self.begun.truncate(needed);
        scratch.unread = unread.start + needed - had..unread.end;
        Ok(Some(header))
    }

    /// A frame with data comes, if it may.
    fn announce(&mut self, header: Header, message_max: usize, budget: &Budget) -> Result<(), End> {
        header.check_place(self.unfinished.then_some(self.announced), message_max)?;
        if !budget.allows(CODEC_BYTES + 2 * header.payload) {
            return Err(End::NoMemory);
        }
        self.to_come = header.payload;
        self.unfinished = !header.fin;
        self.announced += header.payload;
        Ok(())
    }
}

/// A frame as the codec reads it: the header, if it was not read before, and as much of the payload as there is.
struct Unread<'a>([&'a [u8]; 2]);

impl Read for Unread<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.iter_mut().find(|unread| !unread.is_empty()) {
            Some(unread) => unread.read(buffer),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

/// The codec has nothing to say: it never sees what is to be answered.
impl Write for Unread<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
