//! One connection, from its first byte to its last: the request, then WebSocket, then the end.
//!
//! | phase      | what comes in                      | what goes out                  | where it leads             |
//! |------------|------------------------------------|--------------------------------|----------------------------|
//! | `Head`     | the head of a request              | nothing                        | `Open`, `Ending`           |
//! | `Open`     | messages, pings, pongs             | what is queued                 | `Closing`, `Ending`        |
//! | `Closing`  | the same, dropped but for a Close  | what is queued, our Close last | `Ending`                   |
//! | `Ending`   | anything, thrown away              | what is queued                 | `Draining`, `Over`         |
//! | `Draining` | anything, thrown away              | nothing: the write side is shut | `Over`                    |
//! | `Over`     | nothing                            | nothing                        | the stream can be dropped  |
//!
//! Wherever TCP breaks `Over` is next, and each of the phases but `Open` with an id has a time after which it ends by
//! itself, see [`Session::tick`].
//!
//! A session owns its stream, which may be two buffers in a test. It reads only in [`Session::fill`] and writes
//! only in [`Session::flush`]; all else is done in memory, so that a burst goes out in one write. What it read lies in
//! the [`Scratch`] of all, and [`Session::next`] takes it from there to the last byte before anybody else reads. A session
//! at rest, with nothing begun and nothing that waits to go out, is a descriptor and a few numbers.

mod buffers;
mod close;
pub mod frame;
mod inbound;
mod queue;
mod request_head;

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::time::Duration;

use tungstenite::Message;

use crate::http::RejectReason;
use crate::limits::{CLOSE_TIME_MAX, CONNECTION_BYTES, DRAIN_BYTES_MAX};
use crate::timestamp::Timestamp;
use buffers::Work;
use inbound::Taken;

pub use buffers::Shared;
pub use close::End;
pub use inbound::Scratch;

/// A stream of bytes that can be ended in one direction.
pub trait Stream: Read + Write {
    /// Tells the peer that no more bytes will come.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// What a session has to say to the server.
#[derive(Debug)]
pub enum Event<'a> {
    /// The complete head of a request. The server answers it with [`Session::accept`] or [`Session::respond`].
    Request(Vec<u8>),
    /// What came for a WebSocket is no request that can be read. It was answered with this status, for this reason.
    Rejected(u16, RejectReason),
    /// A message of text.
    Text(&'a str),
    /// A message of bytes.
    Binary(&'a [u8]),
    /// A ping with this payload, to be answered with [`Session::pong`].
    Ping(Vec<u8>),
    /// A pong or a small fragment. There is nothing to do but to charge the peer for it.
    Overhead,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The scratch is full: there may be more, and no event will say so.
    More,
    /// A short read, which proves that the kernel has no more (epoll(7)).
    Drained,
    /// Input that was set aside before by [`Session::hold`]. Nothing was read from the stream, which may have more.
    Held,
    /// There is nothing now.
    Empty,
    /// Nothing will ever come again.
    Ended,
}

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Open,
    Closing,
    Ending,
    Draining,
    Over,
}

/// One connection.
pub struct Session<S> {
    stream: S,
    phase: Phase,
    /// Why it ends, once it does.
    end: Option<End>,
    /// When the phase ends by itself.
    deadline: Option<Timestamp>,
    /// Since when nothing has come, or nothing since it was asked for a sign of life.
    silent_since: Timestamp,
    /// Whether it was asked since something came.
    asked: bool,
    /// Whether reading is paused.
    paused: bool,
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
    /// Creates the session of a connection that was just accepted. The head of its request has this time to arrive.
    pub fn new(stream: S, head_time: Duration, shared: &mut Shared) -> Session<S> {
        shared.budget.change(0, CONNECTION_BYTES);
        Session {
            stream,
            phase: Phase::Head,
            end: None,
            deadline: Some((shared.now + head_time).into()),
            silent_since: shared.now.into(),
            asked: false,
            paused: false,
            closed: false,
            drained: false,
            ended: false,
            work: None,
        }
    }

    /// It is gone.
    pub fn free(self, shared: &mut Shared) {
        if let Some(work) = self.work {
            work.end(&mut shared.budget);
        }
        shared.budget.change(CONNECTION_BYTES, 0);
    }

    /// Whether messages can be exchanged.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether there is nothing left to do but to drop it.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether an answer, or a goodbye, is not yet written to the stream.
    pub fn is_answering(&self) -> bool {
        self.phase == Phase::Ending
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

    // ---- In ----

    /// Pauses reading: the caller calls [`Session::fill`] again after [`Session::resume`]. Meanwhile silence does not count.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Ends a pause.
    pub fn resume(&mut self, now: Duration) {
        self.paused = false;
        self.silent_since = now.into();
        self.asked = false;
    }

    /// Ends the pause of a session that is closing. Returns whether there was one, and the session is to be read again.
    pub fn end_pause_if_closing(&mut self) -> bool {
        !self.is_open() && mem::take(&mut self.paused)
    }

    /// Returns whether reading is paused. A session that is closing is always read, for the peer's Close frame.
    pub fn is_paused(&self) -> bool {
        self.paused && self.is_open()
    }

    /// Ends the session because the peer has closed its side of the connection or TCP has failed.
    pub fn disconnected(&mut self) {
        self.ended = true;
        self.over(End::Lost);
    }

    /// Reads once, as much as the scratch holds. [`Session::next`] is to be called until it has no more.
    pub fn fill(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Fill {
        debug_assert!(scratch.unread.is_empty(), "input of another session was not handled");
        scratch.unread = 0..0;
        if self.take_held(scratch, shared) {
            return Fill::Held;
        }
        let read = loop {
            match self.stream.read(&mut scratch.bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(n) if n > 0 => {
                scratch.unread = 0..n;
                shared.metrics.bytes_in += n as u64;
                self.silent_since = shared.now.into();
                self.asked = false;
                self.drained = n < scratch.bytes.len();
                if self.drained { Fill::Drained } else { Fill::More }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.drained = true;
                Fill::Empty
            }
            end => {
                // Who shuts its write side may still read: what is under way to it is sent.
                self.ended = true;
                if end.is_err() || self.phase != Phase::Ending {
                    self.over(End::Lost);
                }
                Fill::Ended
            }
        }
    }

    /// Takes the next event out of what was read. `None`: all of it is taken.
    pub fn next<'a>(&mut self, scratch: &'a mut Scratch, shared: &mut Shared) -> Option<Event<'a>> {
        while !scratch.unread.is_empty() {
            match self.phase {
                Phase::Head => {
                    if let Some(event) = self.take_head(scratch, shared) {
                        return Some(event);
                    }
                }
                Phase::Open | Phase::Closing => match self.take_frame(scratch, shared) {
                    // It came whole, and lies there.
                    Ok(Taken::Here(range, is_text)) if self.is_open() => {
                        let bytes = &scratch.bytes[range];
                        if !is_text {
                            return Some(Event::Binary(bytes));
                        }
                        let text = std::str::from_utf8(bytes).ok();
                        if text.is_none() {
                            // Nothing that comes after it matters.
                            scratch.unread = 0..0;
                            self.fail(End::NotUtf8, shared);
                        }
                        return text.map(Event::Text);
                    }
                    // It came in pieces, which the codec has put together.
                    Ok(Taken::Message) if self.is_open() => {
                        return match &scratch.message {
                            Message::Text(text) => Some(Event::Text(text)),
                            Message::Binary(data) => Some(Event::Binary(data)),
                            _ => unreachable!("the codec is given nothing else"),
                        };
                    }
                    Ok(Taken::Ping(payload)) if self.is_open() => return Some(Event::Ping(payload)),
                    Ok(Taken::Overhead) if self.is_open() => return Some(Event::Overhead),
                    Ok(_) => {}
                    Err(end) => self.fail(end, shared),
                },
                Phase::Ending | Phase::Draining => {
                    let work = Work::begin(&mut self.work, shared);
                    work.thrown_away += scratch.clear();
                    if work.thrown_away > DRAIN_BYTES_MAX {
                        self.phase = Phase::Over;
                    }
                }
                Phase::Over => _ = scratch.clear(),
            }
        }
        None
    }

    // ---- Out ----

    /// Writes as much as the stream takes. Returns whether the peer showed life by that: its TCP has acknowledged bytes of
    /// a queue that was full.
    pub fn flush(&mut self, shared: &mut Shared) -> bool {
        if self.is_over() {
            return false;
        }
        let Some(work) = &mut self.work else { return false };
        let max = shared.config.queue_bytes_max();
        let written = work.queue.write(&mut self.stream, max, shared.now);
        work.charge(&mut shared.budget);
        let is_empty = work.queue.is_empty();
        let is_alive = written.as_ref().is_ok_and(|written| written.acknowledged);
        match written {
            Ok(written) => shared.metrics.bytes_out += written.bytes as u64,
            Err(_) => self.over(End::Lost),
        }
        if is_alive {
            self.silent_since = shared.now.into();
            self.asked = false;
        }
        if is_empty {
            self.flushed(shared);
        }
        is_alive && self.is_open()
    }

    /// All that was to be said is said.
    fn flushed(&mut self, shared: &mut Shared) {
        match self.phase {
            Phase::Open => {
                if let Some(work) = self.work.take_if(|work| work.inbound.is_at_rest()) {
                    work.rest(shared);
                }
            }
            // After both Closes the server closes TCP at once (RFC 6455 section 7.1.1), unless bytes lie unread
            // in the kernel: it would answer with a reset, which may overtake what was just sent.
            Phase::Ending if self.ended || self.closed && self.drained => self.phase = Phase::Over,
            Phase::Ending => match self.stream.shutdown_write() {
                Ok(()) => {
                    if let Some(work) = self.work.take() {
                        work.end(&mut shared.budget);
                    }
                    self.enter(Phase::Draining, shared.now);
                }
                Err(_) => self.phase = Phase::Over,
            },
            Phase::Head | Phase::Closing | Phase::Draining | Phase::Over => {}
        }
    }

    // ---- The end, and the time ----

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
                self.say(end, shared);
                self.end = Some(end);
                self.enter(Phase::Closing, shared.now);
            }
            Phase::Closing | Phase::Ending | Phase::Draining | Phase::Over => {}
        }
    }

    /// Ends a connection that is not a WebSocket at once, because a new connection needs its place.
    ///
    /// A request whose head is incomplete is answered 408, as far as the stream takes the answer without blocking.
    pub fn evict(&mut self, shared: &mut Shared) {
        if self.phase == Phase::Head {
            self.miss_head(shared);
            self.flush(shared);
        }
        self.over(End::Http);
    }

    /// What comes can be understood no further: says why, and nothing after that.
    fn fail(&mut self, end: End, shared: &mut Shared) {
        self.say(end, shared);
        self.finish(end, shared.now);
    }

    fn say(&mut self, end: End, shared: &mut Shared) {
        if let Some(close) = end.close().filter(|_| self.is_open()) {
            self.queue(shared, |queue, now| queue.push_close(&close, now));
        }
    }

    /// Nothing is to be said but what is queued.
    fn finish(&mut self, end: End, now: Duration) {
        self.end.get_or_insert(end);
        self.enter(Phase::Ending, now);
    }

    fn enter(&mut self, phase: Phase, now: Duration) {
        self.phase = phase;
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
                Phase::Head => self.miss_head(shared),
                Phase::Open => self.close(End::Unregistered, shared),
                Phase::Closing | Phase::Ending | Phase::Draining | Phase::Over => self.phase = Phase::Over,
            }
            return true;
        }
        if !self.is_open() {
            return false;
        }
        let queue_max = shared.config.queue_bytes_max();
        let is_silent = !self.paused && now - self.silent_since.get() >= shared.config.ping_interval;
        if is_silent && self.asked {
            self.close(End::Silent, shared);
        } else if self.work.as_ref().is_some_and(|work| work.queue.is_stalled(queue_max, now)) {
            self.close(End::Slow, shared);
        } else if is_silent {
            self.silent_since = now.into();
            self.asked = true;
            self.ping(shared);
        } else {
            return false;
        }
        true
    }
}
