//! One connection, from its first byte to its last: the request, then WebSocket, then the end.
//!
//! A session owns its stream, which may be two buffers in a test. It reads only in [`Session::fill`] and writes
//! only in [`Session::flush`]; all else is done in memory, so that a burst goes out in one write. What it read
//! lies in the [`Scratch`] of all, and [`Session::next`] takes it from there to the last byte before anybody else
//! reads. Time is an argument.
//!
//! A message that came whole, in one frame, is taken where it lies. What else RFC 6455 allows (fragments, control
//! frames, messages of several reads) goes through tungstenite's codec, frame by frame.
//!
//! A session at rest is a descriptor and a few numbers: it has no codec and no buffer. It rests when no frame and
//! no message is begun and nothing waits to go out, for then the codec's state is nothing: it was given whole frames
//! only, and has given back what they made.

use std::io::{self, Read, Write};
use std::mem;
use std::time::Duration;

use crate::address::Address;
use crate::config::{
    ALWAYS_HELD_BYTES, CLOSE_TIME_MAX, CONNECTION_BYTES, HEAD_TIME_MAX, SPARE_BYTES_MAX, SPARE_WORKS_MAX,
    STALL_TIME_MAX,
};
use crate::frame;
use crate::http::{self, Door};
use crate::stamp::Stamp;

mod end;
mod inbound;
mod shared;
mod work;

pub use end::End;
pub use inbound::{Event, Fill};
pub use shared::{Scratch, Shared};

use work::{Work, begin};

/// A stream of bytes that can be ended in one direction.
pub trait Stream: Read + Write {
    /// Tells the peer that no more bytes will come.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The head of the request is coming in.
    Head,
    /// Messages go both ways.
    Open,
    /// Our Close is on its way; the peer's is awaited, and messages are dropped.
    Closing,
    /// What is queued goes out; nothing that comes in matters any more.
    Ending,
    /// All is said and the write side is shut; what still comes is thrown away, until the peer closes too.
    Draining,
    /// The stream can be dropped.
    Over,
}

/// One connection.
pub struct Session<S> {
    stream: S,
    door: Door,
    /// Where the peer is, as far as is known.
    address: Address,
    /// Whether the crowd of that place counts it.
    counted: bool,
    phase: Phase,
    /// Why it ends, once it does.
    end: Option<End>,
    /// When the phase ends by itself.
    deadline: Option<Stamp>,
    /// When the last byte came.
    heard: Stamp,
    /// When a ping was sent since then.
    pinged: Option<Stamp>,
    /// Whether both have said Close.
    closed: bool,
    /// Whether the last read left nothing in the kernel.
    drained: bool,
    /// Whether the peer will send nothing more.
    ended: bool,
    /// What is under way. A session at rest has none.
    work: Option<Box<Work>>,
}

impl<S: Stream> Session<S> {
    /// A connection that was just accepted.
    pub fn new(stream: S, door: Door, address: Address, shared: &mut Shared) -> Session<S> {
        let counted = door == Door::Main && !shared.config.trusts(address.ip());
        if counted {
            shared.crowd.enter(address);
        }
        shared.budget.change(0, CONNECTION_BYTES);
        let now = shared.now;
        Session {
            stream,
            door,
            address,
            counted,
            phase: Phase::Head,
            end: None,
            deadline: Some((now + HEAD_TIME_MAX).into()),
            heard: now.into(),
            pinged: None,
            closed: false,
            drained: false,
            ended: false,
            work: None,
        }
    }

    /// It is gone.
    pub fn free(mut self, shared: &mut Shared) {
        if self.counted {
            shared.crowd.leave(self.address);
        }
        let charged = self.work.take().map_or(0, |work| work.charged);
        shared.budget.change(charged + CONNECTION_BYTES, 0);
    }

    /// Where the peer is: at the other end of TCP, or where a trusted proxy says.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Which listener it came through.
    pub fn door(&self) -> Door {
        self.door
    }

    /// Whether messages can be exchanged.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether there is nothing left to do but to drop it.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Why it ended, if it did.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Whether nothing is under way, and no memory is used for it.
    pub fn is_at_rest(&self) -> bool {
        self.work.is_none()
    }

    /// The stream, for tests.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    // ---- Out ----

    /// Whether all of these find room in the queue. A session that is no longer open takes, and forgets, all.
    pub fn has_room(&mut self, texts: &[String], shared: &Shared) -> bool {
        self.has_room_for(texts.iter().map(|text| frame::len(text.len())).sum(), shared)
    }

    fn has_room_for(&mut self, bytes: usize, shared: &Shared) -> bool {
        let queued = self.work.as_ref().map_or(0, |work| work.queue.len());
        // A queue that grows may come to have twice the room it needs.
        let fits_budget = || queued + bytes <= ALWAYS_HELD_BYTES || shared.budget.allows(queued + 2 * bytes);
        let fits = !self.is_open() || (queued + bytes <= shared.config.queue_bytes_max() && fits_budget());
        // Who has taken all is not slow, whatever does not fit.
        if let Some(work) = self.work.as_mut().filter(|_| !fits && queued > 0) {
            work.full = true;
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
            begin(&mut self.work, &mut shared.spare).push(opcode, payload, shared);
        } else if shared.budget.allows(2 * shared.config.queue_bytes_max()) {
            self.close(End::Slow, shared);
        } else {
            self.close(End::NoMemory, shared);
        }
    }

    /// Queues a ping.
    pub fn ping(&mut self, shared: &mut Shared) {
        if self.is_open() {
            self.pinged = Some(shared.now.into());
            begin(&mut self.work, &mut shared.spare).push(frame::PING, &[], shared);
        }
    }

    /// Notes that the peer has an id, so that it has said its first message in time.
    pub fn registered(&mut self) {
        if self.is_open() {
            self.deadline = None;
        }
    }

    /// Says goodbye, if there is somebody to say it to, and waits for the peer's.
    pub fn close(&mut self, end: End, shared: &mut Shared) {
        match self.phase {
            Phase::Head => self.over(end),
            Phase::Open => {
                self.write_close(end, shared);
                self.phase = Phase::Closing;
                self.end = Some(end);
                self.deadline = Some((shared.now + CLOSE_TIME_MAX).into());
            }
            Phase::Closing | Phase::Ending | Phase::Draining | Phase::Over => {}
        }
    }

    /// The codec can read no further: says why, and nothing after that.
    fn fail(&mut self, end: End, shared: &mut Shared) {
        if end == End::Lost {
            return self.over(end);
        }
        if self.phase == Phase::Open {
            self.write_close(end, shared);
        }
        self.finish(end, shared.now);
    }

    fn write_close(&mut self, end: End, shared: &mut Shared) {
        let work = begin(&mut self.work, &mut shared.spare);
        // A pong that still waits goes before it.
        work.push_codec(true, shared);
        let (codec, mut wire) = work.codec([&[], &[]], true, shared);
        let _ = codec.close(&mut wire, end.close_frame());
        work.charge(&mut shared.budget);
    }

    /// Writes as much as the stream takes.
    pub fn flush(&mut self, shared: &mut Shared) {
        if matches!(self.phase, Phase::Head | Phase::Draining | Phase::Over) {
            return;
        }
        let Some(work) = &mut self.work else { return };
        loop {
            let all_said = work.push_codec(false, shared);
            work.charge(&mut shared.budget);
            match work.write(&mut self.stream, shared.now) {
                Ok(written) => shared.metrics.bytes_out += written as u64,
                Err(_) => return self.over(End::Lost),
            }
            if !work.queue.is_empty() {
                return;
            }
            // There was no room for a pong, and now there is.
            if all_said {
                return self.flushed(shared);
            }
        }
    }

    fn flushed(&mut self, shared: &mut Shared) {
        match self.phase {
            Phase::Open => {
                let Some(mut work) = self.work.take_if(|work| work.is_between_messages()) else { return };
                work.codec = None;
                shared.budget.change(mem::take(&mut work.charged), 0);
                if work.queue.capacity().max(work.begun.capacity()) <= SPARE_BYTES_MAX
                    && shared.spare.len() < SPARE_WORKS_MAX
                {
                    shared.spare.push(work);
                }
            }
            // After both Closes the server closes TCP at once (RFC 6455 section 7.1.1), unless bytes lie unread
            // in the kernel: it would answer with a reset, which may overtake what was just sent.
            Phase::Ending if self.ended || self.closed && self.drained => {
                self.phase = Phase::Over;
            }
            Phase::Ending => match self.stream.shutdown_write() {
                Ok(()) => {
                    if let Some(work) = self.work.take() {
                        shared.budget.change(work.charged, 0);
                    }
                    self.phase = Phase::Draining;
                    self.deadline = Some((shared.now + CLOSE_TIME_MAX).into());
                }
                Err(_) => self.phase = Phase::Over,
            },
            _ => {}
        }
    }

    // ---- The end, and the time ----

    /// Nothing is to be said but what is queued.
    fn finish(&mut self, end: End, now: Duration) {
        self.end.get_or_insert(end);
        self.phase = Phase::Ending;
        self.deadline = Some((now + CLOSE_TIME_MAX).into());
    }

    fn over(&mut self, end: End) {
        self.end.get_or_insert(if self.phase == Phase::Head { End::Http } else { end });
        self.phase = Phase::Over;
    }

    /// Looks at the clock. Called about every second. Returns whether anything was due, and is to be flushed.
    pub fn tick(&mut self, shared: &mut Shared) -> bool {
        let now = shared.now;
        if self.deadline.is_some_and(|deadline| deadline.get() <= now) {
            match self.phase {
                Phase::Head => {
                    let head = self.work.as_ref().map_or(&[][..], |work| &work.begun);
                    self.answer(http::timeout(head), shared);
                }
                Phase::Open => self.close(End::Unregistered, shared),
                Phase::Closing | Phase::Ending | Phase::Draining | Phase::Over => self.phase = Phase::Over,
            }
            return true;
        }
        if !self.is_open() {
            return false;
        }
        let (silence, interval) = (now - self.heard.get(), shared.config.ping_interval);
        let queue = shared.config.queue_bytes_max();
        let stalled = self.work.as_ref().is_some_and(|work| {
            (work.full || work.queue.len() > queue) && now - work.progress >= STALL_TIME_MAX
        });
        // A peer must have been asked: after a stop of the server itself, silence says nothing.
        let asked_in_vain = self.pinged.is_some_and(|asked| now - asked.get() >= interval);
        if silence >= 2 * interval && asked_in_vain {
            self.close(End::Silent, shared);
        } else if stalled {
            self.close(End::Slow, shared);
        } else if silence >= interval && self.pinged.is_none() {
            self.ping(shared);
        } else {
            return false;
        }
        true
    }
}
