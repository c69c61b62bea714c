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

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::ops::Range;
use std::time::Duration;

use tungstenite::error::{CapacityError, Error};
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Message, Utf8Bytes};

use crate::address::{Address, Crowd};
use crate::budget::Budget;
use crate::config::{
    ALWAYS_HELD_BYTES, CLOSE_TIME_MAX, CODEC_BYTES, CONNECTION_BYTES, Config, DRAIN_BYTES_MAX,
    FIRST_MESSAGE_TIME_MAX, HEAD_BYTES_MAX, HEAD_TIME_MAX, QUEUE_BYTES_SPARE, READ_BYTES_MAX,
    SPARE_BYTES_MAX, SPARE_WORKS_MAX, STALL_TIME_MAX,
};
use crate::frame::{self, Broken, Header};
use crate::http::{self, Answer, Door, Place, Refusal};
use crate::metrics::Metrics;
use crate::stamp::Stamp;
use crate::token::Claims;

/// A stream of bytes that can be ended in one direction.
pub trait Stream: Read + Write {
    /// Tells the peer that no more bytes will come.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// What all sessions share, because only one is at work at a time.
pub struct Shared {
    /// What the operator chose.
    pub config: Config,
    /// What is counted.
    pub metrics: Metrics,
    /// The time since the start, looked up once a turn.
    pub now: Duration,
    /// What time it is, since 1970: tokens go by the clock on the wall.
    pub wall: Duration,
    /// Whether there is no place for another WebSocket.
    pub full: bool,
    /// How many connections come from where.
    pub crowd: Crowd,
    /// How much memory is used.
    pub budget: Budget,
    codec_config: WebSocketConfig,
    /// For the next session that has something to do.
    spare: Spare,
}

impl Shared {
    /// For sessions under this configuration.
    pub fn new(config: Config) -> Shared {
        Shared {
            codec_config: WebSocketConfig::default()
                .read_buffer_size(CODEC_BYTES)
                // Pongs and Closes go to the queue, and wait in the codec only where that is full.
                .write_buffer_size(0)
                .max_write_buffer_size(QUEUE_BYTES_SPARE)
                .max_message_size(Some(config.message_bytes_max))
                .max_frame_size(Some(config.message_bytes_max)),
            crowd: Crowd::new(config.connections_per_ip_max),
            budget: Budget::new(&config),
            config,
            metrics: Metrics::default(),
            now: Duration::ZERO,
            wall: Duration::ZERO,
            full: false,
            spare: Vec::new(),
        }
    }
}

/// What the last read brought, and what was made of it. All sessions share one: who has read takes it all before
/// another reads.
pub struct Scratch {
    bytes: Box<[u8]>,
    /// The part of the bytes that is not yet taken.
    unread: Range<usize>,
    /// The last message that the codec gave.
    message: Message,
}

impl Default for Scratch {
    fn default() -> Scratch {
        let bytes = vec![0; READ_BYTES_MAX].into_boxed_slice();
        Scratch { bytes, unread: 0..0, message: Message::Close(None) }
    }
}

impl Scratch {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.unread.clone()]
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was answered in plain HTTP, or went before that.
    Http,
    /// The peer closed.
    Left,
    /// The connection broke, or TCP was closed without a Close frame.
    Lost,
    /// The peer broke RFC 6455.
    Protocol,
    /// The peer sent text that is not UTF-8.
    NotUtf8,
    /// The peer sent a message larger than `--max-message`.
    TooBig,
    /// The peer sent too much for too long.
    RateLimited,
    /// The peer registered no id in time.
    Unregistered,
    /// The peer reads too slowly.
    Slow,
    /// What it sends, or is to be sent, does not fit into `--max-memory`.
    NoMemory,
    /// The peer showed no life while another claimed its id.
    Replaced,
    /// The peer showed no life for two ping intervals.
    Silent,
    /// The server stops.
    GoingAway,
}

impl End {
    /// All ways a WebSocket may end.
    pub const ALL: [End; 12] = [
        End::Left,
        End::Lost,
        End::Protocol,
        End::NotUtf8,
        End::TooBig,
        End::RateLimited,
        End::Unregistered,
        End::Slow,
        End::NoMemory,
        End::Replaced,
        End::Silent,
        End::GoingAway,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            End::Http => "http",
            End::Left => "left",
            End::Lost => "lost",
            End::Protocol => "protocol_error",
            End::NotUtf8 => "not_utf8",
            End::TooBig => "too_big",
            End::RateLimited => "rate_limited",
            End::Unregistered => "unregistered",
            End::Slow => "slow",
            End::NoMemory => "no_memory",
            End::Replaced => "replaced",
            End::Silent => "silent",
            End::GoingAway => "going_away",
        }
    }

    /// The Close frame that says it, where the server is the one to say it.
    fn close_frame(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            End::Http | End::Left | End::Lost => return None,
            End::Protocol => (1002, "protocol error"),
            End::NotUtf8 => (1007, "text is not UTF-8"),
            End::TooBig => (1009, "message too big"),
            End::RateLimited => (1008, "rate limit"),
            End::Unregistered => (1008, "nothing registered"),
            End::Slow => (1013, "reads too slowly"),
            End::NoMemory => (1013, "server out of memory"),
            End::Replaced => (4000, "replaced"),
            End::Silent => (4001, "no sign of life"),
            End::GoingAway => (1001, "server going away"),
        };
        Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) })
    }

    /// What an error of the codec means. The one place that knows.
    fn of(error: &Error) -> End {
        match error {
            Error::Protocol(_) | Error::AttackAttempt => End::Protocol,
            Error::Utf8(_) => End::NotUtf8,
            Error::Capacity(CapacityError::MessageTooLong { .. }) => End::TooBig,
            _ => End::Lost,
        }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        match broken {
            Broken::Protocol => End::Protocol,
            Broken::NotUtf8 => End::NotUtf8,
            Broken::TooBig => End::TooBig,
        }
    }
}

/// What a session has to say to the server.
#[derive(Debug)]
pub enum Event<'a> {
    /// It speaks WebSocket from now on, in this room, and its token, where one is needed, says this.
    Upgraded(String, Option<Claims>),
    /// It asked for a WebSocket and was answered with this status, and why.
    Refused(u16, Refusal),
    /// A message of text.
    Text(&'a str),
    /// A message of bytes.
    Binary(&'a [u8]),
}

/// What was taken from the scratch.
enum Taken {
    /// A message that lies there, unmasked, and whether it is text.
    There(Range<usize>, bool),
    /// A message that the codec has put there.
    Message,
    /// Something else.
    Other,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The scratch is full: there may be more, and no event will say so.
    More,
    /// A short read, which proves that the kernel has no more (epoll(7)).
    Drained,
    /// There is nothing now.
    Empty,
    /// Nothing will ever come again.
    Ended,
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

#[allow(clippy::vec_box, reason = "sessions take them as they are")]
type Spare = Vec<Box<Work>>;

/// What is under way in a session.
#[derive(Default)]
struct Work {
    /// The head of the request, or the header of a frame, or a Close, as far as it came.
    begun: Vec<u8>,
    /// Bytes of a frame that are still to come.
    to_come: usize,
    /// Whether a message is fragmented and its last frame has not begun.
    unfinished: bool,
    /// Bytes of the message that is coming in, those that are announced included.
    incoming: usize,
    codec: Option<WebSocketContext>,
    /// What waits to be sent.
    queue: Vec<u8>,
    /// When the peer last took a byte, or the queue ceased to be empty.
    progress: Duration,
    /// Whether something found no room in the queue since the peer last took a byte.
    full: bool,
    /// What was thrown away while draining.
    thrown_away: usize,
    /// What the budget counts for it.
    charged: usize,
}

impl Work {
    /// Whether the next byte begins a message, or a control frame between messages.
    fn is_between_messages(&self) -> bool {
        self.begun.is_empty() && self.to_come == 0 && !self.unfinished
    }

    /// Queues a frame of ours.
    #[inline]
    fn push(&mut self, opcode: u8, payload: &[u8], shared: &mut Shared) {
        if self.queue.is_empty() {
            self.progress = shared.now;
        }
        frame::push(&mut self.queue, opcode, payload);
        self.charge(&mut shared.budget);
    }

    /// Has the budget count what it uses now.
    fn charge(&mut self, budget: &mut Budget) {
        let buffers = self.begun.capacity() + self.queue.capacity();
        // The codec's buffers grow by doubling.
        let codec = if self.codec.is_some() { CODEC_BYTES + 2 * self.incoming } else { 0 };
        let charged = buffers + codec;
        budget.change(mem::replace(&mut self.charged, charged), charged);
    }

    /// The codec, and the stream that it is to see: these bytes to read, and the queue to write to. What is said last
    /// is said even to a full queue.
    fn codec<'a>(
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
    fn push_codec(&mut self, last: bool, shared: &Shared) -> bool {
        if self.codec.is_none() {
            return true;
        }
        let (codec, mut wire) = self.codec([&[], &[]], last, shared);
        // Twice, because a pong that found no room in the codec is there only after the first.
        codec.flush(&mut wire).and_then(|()| codec.flush(&mut wire)).is_ok()
    }

    /// Writes as much of the queue as the stream takes. Returns how much that was.
    fn write(&mut self, stream: &mut impl Write, now: Duration) -> io::Result<usize> {
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

    // ---- In ----

    /// Reads once, as much as the scratch holds. [`Session::next`] is to be called until it has no more.
    pub fn fill(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Fill {
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
                self.heard = shared.now.into();
                self.pinged = None;
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
                    Ok(Taken::There(range, is_text)) if self.is_open() => {
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
                    Ok(Taken::Message) if self.is_open() => {
                        return match &scratch.message {
                            Message::Text(text) => Some(Event::Text(text)),
                            Message::Binary(data) => Some(Event::Binary(data)),
                            _ => unreachable!("others are not for the server"),
                        };
                    }
                    Ok(_) => {}
                    Err(end) => self.fail(end, shared),
                },
                Phase::Ending | Phase::Draining => {
                    let work = begin(&mut self.work, &mut shared.spare);
                    work.thrown_away += scratch.unread.len();
                    if work.thrown_away > DRAIN_BYTES_MAX {
                        self.phase = Phase::Over;
                    }
                    scratch.unread = 0..0;
                }
                Phase::Over => scratch.unread = 0..0,
            }
        }
        None
    }

    /// Takes the head of the request, and answers it if that was all.
    fn take_head(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Option<Event<'static>> {
        let work = begin(&mut self.work, &mut shared.spare);
        let searched = work.begun.len();
        // A byte more than allowed is enough to know that the head is too large.
        let room = HEAD_BYTES_MAX + 1 - searched;
        let unread = scratch.unread();
        let read = &unread[..unread.len().min(room)];
        let fits = searched + read.len() <= ALWAYS_HELD_BYTES || shared.budget.allows(2 * read.len());
        work.begun.extend_from_slice(read);
        work.charge(&mut shared.budget);
        let head = &work.begun;
        let answer = match http::head_end(head, searched) {
            _ if http::is_impossible(head) => http::malformed(head),
            Some(end) if end <= HEAD_BYTES_MAX => {
                scratch.unread.start += end - searched;
                let Shared { config, metrics, crowd, full, wall, .. } = shared;
                let is_trusted = self.door == Door::Main && config.trusts(self.address.ip());
                http::answer(&head[..end], self.door, config, metrics, is_trusted, *wall, |forwarded| {
                    if let Some(ip) = forwarded {
                        self.address = ip.into();
                        self.counted = true;
                        crowd.enter(self.address);
                    }
                    match crowd.excess(self.address) {
                        _ if *full => Place::Full,
                        0 => Place::Free,
                        _ => Place::Crowded,
                    }
                })
            }
            None if head.len() <= HEAD_BYTES_MAX && fits => {
                scratch.unread = 0..0;
                return None;
            }
            None if !fits => http::no_memory(head),
            _ => http::head_too_large(head),
        };
        let answer = match answer {
            Answer::Plain { response, .. }
                if self.door == Door::Main
                    && response.len() > ALWAYS_HELD_BYTES
                    && !shared.budget.allows(response.len()) =>
            {
                http::no_memory(head)
            }
            answer => answer,
        };
        self.answer(answer, shared)
    }

    fn answer(&mut self, mut answer: Answer, shared: &mut Shared) -> Option<Event<'static>> {
        let work = begin(&mut self.work, &mut shared.spare);
        work.begun = Vec::new();
        work.progress = shared.now;
        let (Answer::Upgrade { response, .. } | Answer::Plain { response, .. }) = &mut answer;
        work.queue = mem::take(response);
        work.charge(&mut shared.budget);
        match answer {
            Answer::Upgrade { room, claims, .. } => {
                self.phase = Phase::Open;
                self.deadline = Some((shared.now + FIRST_MESSAGE_TIME_MAX).into());
                Some(Event::Upgraded(room, claims))
            }
            Answer::Plain { status, refused, .. } => {
                self.finish(End::Http, shared.now);
                Some(Event::Refused(status, refused?))
            }
        }
    }

    /// Takes what there is of one frame.
    fn take_frame(&mut self, scratch: &mut Scratch, shared: &mut Shared) -> Result<Taken, End> {
        let payload_max = shared.config.message_bytes_max;
        if self.work.as_ref().is_none_or(|work| work.is_between_messages())
            && let Some(header) = Header::parse(scratch.unread(), payload_max)?
            && header.is_message()
            && header.len() <= scratch.unread.len()
        {
            let start = scratch.unread.start + header.bytes;
            let payload = start..start + header.payload;
            frame::unmask(&mut scratch.bytes[payload.clone()], header.mask);
            scratch.unread.start = payload.end;
            return Ok(Taken::There(payload, header.opcode == frame::TEXT));
        }

        let work = begin(&mut self.work, &mut shared.spare);
        let mut begun = Vec::new();
        if work.to_come == 0 {
            let had = work.begun.len();
            let unread = scratch.unread();
            work.begun.extend_from_slice(&unread[..unread.len().min(frame::CONTROL_FRAME_BYTES_MAX - had)]);
            let header = Header::parse(&work.begun, payload_max)?;
            // Control frames are taken as a whole: they always pass, and shall take nothing while they wait.
            let needed = header.map(|header| if header.is_control() { header.len() } else { header.bytes });
            let (Some(header), Some(needed)) = (header, needed.filter(|needed| *needed <= work.begun.len()))
            else {
                scratch.unread = 0..0;
                work.charge(&mut shared.budget);
                return Ok(Taken::Other);
            };
            scratch.unread.start += needed - had;
            begun = mem::take(&mut work.begun);
            begun.truncate(needed);
            if header.opcode == frame::CLOSE {
                frame::unmask(&mut begun[header.bytes..], header.mask);
                return self.take_close(&begun[header.bytes..], shared).map(|()| Taken::Other);
            }
            if header.opcode == frame::PONG {
                // That it came is all that it says.
                return Ok(Taken::Other);
            }
            if !header.is_control() {
                header.check_place(work.unfinished.then_some(work.incoming), payload_max)?;
                if !shared.budget.allows(CODEC_BYTES + 2 * header.payload) {
                    return Err(End::NoMemory);
                }
                work.to_come = header.payload;
                work.unfinished = !header.fin;
                work.incoming += header.payload;
            }
        }
        let unread = scratch.unread();
        let payload = &unread[..unread.len().min(work.to_come)];
        let (codec, mut wire) = work.codec([&begun, payload], false, shared);
        let read = codec.read(&mut wire);
        work.to_come -= payload.len();
        scratch.unread.start += payload.len();
        if work.is_between_messages() {
            work.incoming = 0;
        }
        work.charge(&mut shared.budget);
        match read {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                scratch.message = message;
                Ok(Taken::Message)
            }
            // For a ping, the codec has a pong ready.
            Ok(_) => Ok(Taken::Other),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(Taken::Other),
            Err(error) => Err(End::of(&error)),
        }
    }

    /// Takes a Close, which is answered with its like, or is the answer to ours.
    fn take_close(&mut self, payload: &[u8], shared: &mut Shared) -> Result<(), End> {
        frame::check_close(payload)?;
        if self.is_open() {
            let work = begin(&mut self.work, &mut shared.spare);
            // A pong that still waits goes before it.
            work.push_codec(true, shared);
            work.push(frame::CLOSE, payload, shared);
        }
        self.closed = true;
        self.finish(End::Left, shared.now);
        Ok(())
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

/// The stream as the codec sees it: it reads one frame from the scratch, and writes to the queue.
struct Wire<'a> {
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
fn begin<'a>(work: &'a mut Option<Box<Work>>, spare: &mut Spare) -> &'a mut Work {
    work.get_or_insert_with(|| spare.pop().unwrap_or_default())
}
