//! Decodes inbound WebSocket frames into messages.
//!
//! A message that arrives in one frame and one read is unmasked and used in place in the [`Scratch`], without a copy. A
//! control frame is buffered until it is complete. Everything else that RFC 6455 allows, fragmented messages and messages
//! that arrive in several reads, passes through the codec of tungstenite. The codec has no state between messages and is
//! dropped then, so that an idle session owns none.
//!
//! Decoding complete messages here instead of in the codec of tungstenite 0.30 saves three of four allocations per
//! message, and 1,800 of 8,400 instructions per forwarded candidate of 200 bytes or 3,200 of 75,900 per SDP of 5,000 bytes
//! (`cargo run --release --example bench`, first with and then without the call of [`Scratch::take_message`]). Dropping the
//! codec after a message saves at least 1,300 bytes of each idle connection.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::ops::Range;

use tungstenite::Message;
use tungstenite::error::Error;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use super::buffers::{Buffers, SharedState};
use super::frame::{self, Header};
use super::{CloseReason, Session, Stream};
use crate::limits::{ALWAYS_HELD_BYTES, CODEC_BYTES, FRAGMENT_BYTES_FREE, READ_BYTES_MAX};
use crate::memory_budget::Budget;

/// Holds the bytes of the last read, and the last message of a codec.
///
/// All sessions share one scratch buffer. Invariant: `unread` is empty before a session reads.
pub struct Scratch {
    pub(super) bytes: Box<[u8]>,
    /// The range of `bytes` that is not yet taken.
    pub(super) unread: Range<usize>,
    /// The last message that a codec has completed.
    pub(super) message: Message,
}

impl Default for Scratch {
    fn default() -> Scratch {
        let bytes = vec![0; READ_BYTES_MAX].into_boxed_slice();
        Scratch { bytes, unread: 0..0, message: Message::Close(None) }
    }
}

impl Scratch {
    /// Takes at most `max` unread bytes.
    pub(super) fn take(&mut self, max: usize) -> &[u8] {
        let start = self.unread.start;
        let end = start + max.min(self.unread.len());
        self.unread.start = end;
        &self.bytes[start..end]
    }

    /// Discards all unread bytes and returns their number.
    pub fn clear(&mut self) -> usize {
        let discarded = self.unread.len();
        self.unread = 0..0;
        discarded
    }

    /// Takes and unmasks a message that is complete in one frame.
    ///
    /// Returns `None`, and takes nothing, if the next frame is incomplete, a fragment or a control frame.
    pub(super) fn take_message(&mut self, payload_max: usize) -> Result<Option<Taken>, CloseReason> {
        let Some(header) = Header::parse(&self.bytes[self.unread.clone()], payload_max)? else {
            return Ok(None);
        };
        if !header.is_message() || header.frame_len() > self.unread.len() {
            return Ok(None);
        }
        let start = self.unread.start + header.header_len;
        let end = start + header.payload_len;
        frame::unmask(&mut self.bytes[start..end], header.mask);
        self.unread.start = end;
        let is_text = header.opcode == frame::TEXT;
        Ok(Some(Taken::MessageInPlace { payload: start..end, is_text }))
    }
}

impl<S: Stream> Session<S> {
    /// Takes the available bytes of one frame.
    pub(super) fn take_frame(
        &mut self,
        scratch: &mut Scratch,
        shared: &mut SharedState,
    ) -> Result<Taken, CloseReason> {
        let message_max = shared.config.message_bytes_max;
        let is_between_messages = match &self.buffers {
            Some(buffers) => buffers.inbound.is_between_messages(),
            None => true,
        };
        if is_between_messages && let Some(message) = scratch.take_message(message_max)? {
            return Ok(message);
        }
        let buffers = Buffers::acquire(&mut self.buffers, shared);
        let result = buffers.inbound.take(scratch, message_max, &shared.budget);
        buffers.update_budget(&mut shared.budget);
        match result? {
            Taken::Control { opcode: frame::CLOSE, payload } => {
                self.on_close_frame(&payload, shared)?;
                Ok(Taken::Nothing)
            }
            Taken::Control { opcode: frame::PING, payload } => Ok(Taken::Ping(payload)),
            // The pong for a ping of the server costs the peer nothing.
            Taken::Control { .. } if self.awaited_pongs > 0 => {
                self.awaited_pongs -= 1;
                Ok(Taken::Nothing)
            }
            Taken::Control { .. } => Ok(Taken::Overhead),
            taken => Ok(taken),
        }
    }

    /// Handles a Close frame.
    ///
    /// If the peer has started the close handshake, the reply repeats its status code (RFC 6455 section 5.5.1).
    fn on_close_frame(&mut self, payload: &[u8], shared: &mut SharedState) -> Result<(), CloseReason> {
        frame::check_close(payload)?;
        let is_own_close_sent = !self.is_open() && !self.ends_without_close_frame;
        if !is_own_close_sent {
            self.update_queue(shared, |queue, now| queue.push_close(payload, now));
        }
        self.close_handshake_done = true;
        self.begin_flushing(CloseReason::Left, shared.now);
        Ok(())
    }

    /// Stores the unread input for the next [`Session::read`].
    ///
    /// Returns whether the memory limit allows that; if not, nothing changes.
    pub fn defer_input(&mut self, scratch: &mut Scratch, shared: &mut SharedState) -> bool {
        let bytes = scratch.unread.len();
        if bytes == 0 {
            return true;
        }
        if bytes > ALWAYS_HELD_BYTES && !shared.budget.allows(bytes) {
            return false;
        }
        let buffers = Buffers::acquire(&mut self.buffers, shared);
        buffers.inbound.deferred = scratch.take(bytes).to_vec();
        buffers.update_budget(&mut shared.budget);
        true
    }

    /// Copies deferred input back into the scratch and returns whether any existed.
    pub(super) fn restore_deferred_input(&mut self, scratch: &mut Scratch, shared: &mut SharedState) -> bool {
        let Some(buffers) = &mut self.buffers else {
            return false;
        };
        if buffers.inbound.deferred.is_empty() {
            return false;
        }
        let deferred = mem::take(&mut buffers.inbound.deferred);
        scratch.bytes[..deferred.len()].copy_from_slice(&deferred);
        scratch.unread = 0..deferred.len();
        buffers.update_budget(&mut shared.budget);
        true
    }
}

/// Represents input that was taken from the scratch. [`Inbound::take`] yields `Control`; [`Session::take_frame`] handles Close
/// frames and pongs, and yields `Ping` instead.
pub(super) enum Taken {
    /// A complete, unmasked message; `payload` is its range in the bytes of the scratch.
    MessageInPlace { payload: Range<usize>, is_text: bool },
    /// A message that the codec has completed, in the field `message` of the scratch.
    MessageFromCodec,
    /// A complete, unmasked control frame.
    Control { opcode: u8, payload: Vec<u8> },
    /// A ping with its payload.
    Ping(Vec<u8>),
    /// A pong or a small fragment: it has no effect but costs CPU time.
    Overhead,
    /// Nothing that the caller has to handle: a part of a frame or of a message, a Close frame, or the pong for a ping of the
    /// server.
    Nothing,
}

/// Holds input that is not yet complete.
#[derive(Default)]
pub(super) struct Inbound {
    /// The received part of the request head.
    pub request_head: Vec<u8>,
    /// Input that was read but not handled: see [`Session::defer_input`]. At most [`READ_BYTES_MAX`].
    pub deferred: Vec<u8>,
    /// The received part of a frame header, or of a control frame.
    partial_frame: Vec<u8>,
    /// Payload bytes of the current data frame that have not arrived.
    payload_missing: usize,
    /// Whether a fragmented message has started and the header of its last fragment has not arrived.
    expects_continuation: bool,
    /// Bytes of the current message, including those that a header has announced and that have not arrived.
    message_bytes: usize,
    codec: Option<WebSocketContext>,
}

impl Inbound {
    /// Returns whether the next byte starts a message or a control frame outside a message.
    pub fn is_between_messages(&self) -> bool {
        self.partial_frame.is_empty() && self.payload_missing == 0 && !self.expects_continuation
    }

    /// Returns whether nothing is stored that a later read needs.
    pub fn is_idle(&self) -> bool {
        self.is_between_messages() && self.deferred.is_empty()
    }

    /// Drops the codec, whose state belongs to one session.
    pub fn drop_codec(&mut self) {
        self.codec = None;
    }

    /// Returns the allocated bytes. The codec's buffers grow by doubling.
    pub fn capacity(&self) -> usize {
        let codec = match &self.codec {
            Some(_) => CODEC_BYTES + 2 * self.message_bytes,
            None => 0,
        };
        self.request_head.capacity() + self.deferred.capacity() + self.partial_frame.capacity() + codec
    }

    /// Takes the available bytes of one frame.
    pub fn take(
        &mut self,
        scratch: &mut Scratch,
        message_max: usize,
        budget: &Budget,
    ) -> Result<Taken, CloseReason> {
        let mut header_bytes = Vec::new();
        let mut is_small_fragment = false;
        if self.payload_missing == 0 {
            let Some(header) = self.take_header(scratch, message_max)? else {
                return Ok(Taken::Nothing);
            };
            let mut frame = mem::take(&mut self.partial_frame);
            if header.is_control() {
                frame.drain(..header.header_len);
                frame::unmask(&mut frame, header.mask);
                return Ok(Taken::Control { opcode: header.opcode, payload: frame });
            }
            header_bytes = frame;
            // The rate limit charges the last fragment together with the message.
            is_small_fragment = !header.fin && header.payload_len < FRAGMENT_BYTES_FREE;
            self.begin_frame(header, message_max, budget)?;
        }
        let payload = scratch.take(self.payload_missing);
        self.payload_missing -= payload.len();
        let codec = self.codec.get_or_insert_with(|| new_codec(message_max));
        let result = codec.read(&mut FrameReader([&header_bytes, payload]));
        if self.is_between_messages() {
            self.message_bytes = 0;
            // The codec's buffers are as large as the message, and the budget does not count them from now on.
            self.codec = None;
        }
        match result {
            Ok(message) => {
                scratch.message = message;
                Ok(Taken::MessageFromCodec)
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                if is_small_fragment {
                    Ok(Taken::Overhead)
                } else {
                    Ok(Taken::Nothing)
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Moves a frame header into `partial_frame`, or a complete control frame.
    ///
    /// Control frames are buffered whole so that no codec is allocated for them. Returns `None` if bytes are missing.
    fn take_header(
        &mut self,
        scratch: &mut Scratch,
        payload_max: usize,
    ) -> Result<Option<Header>, CloseReason> {
        let unread = scratch.unread.clone();
        let received_before = self.partial_frame.len();
        let missing_max = frame::CONTROL_FRAME_BYTES_MAX - received_before;
        self.partial_frame.extend_from_slice(scratch.take(missing_max));
        let Some(header) = Header::parse(&self.partial_frame, payload_max)? else {
            return Ok(None);
        };
        let needed = if header.is_control() { header.frame_len() } else { header.header_len };
        if self.partial_frame.len() < needed {
            return Ok(None);
        }
        self.partial_frame.truncate(needed);
        let taken = needed - received_before;
        scratch.unread = unread.start + taken..unread.end;
        Ok(Some(header))
    }

    /// Begins a data frame if RFC 6455 and the limits allow it.
    fn begin_frame(
        &mut self,
        header: Header,
        message_max: usize,
        budget: &Budget,
    ) -> Result<(), CloseReason> {
        let message_bytes = self.expects_continuation.then_some(self.message_bytes);
        header.check_fragment(message_bytes, message_max)?;
        if !budget.allows(CODEC_BYTES + 2 * header.payload_len) {
            return Err(CloseReason::NoMemory);
        }
        self.payload_missing = header.payload_len;
        self.expects_continuation = !header.fin;
        self.message_bytes += header.payload_len;
        Ok(())
    }
}

fn new_codec(message_max: usize) -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(CODEC_BYTES)
        .max_message_size(Some(message_max))
        .max_frame_size(Some(message_max));
    WebSocketContext::new(Role::Server, Some(config))
}

/// Feeds one frame to the codec: the header, unless it was read before, and the available payload.
struct FrameReader<'a>([&'a [u8]; 2]);

impl Read for FrameReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.iter_mut().find(|part| !part.is_empty()) {
            Some(part) => part.read(buffer),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

/// Rejects writes. The codec gets no control frames, so that it has nothing to reply to.
impl Write for FrameReader<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
