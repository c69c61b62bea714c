//! One connection, from its first byte to its last: the request, then WebSocket, then the end.
//!
//! A session owns its stream, which may be two buffers in a test. It reads only in [`Session::fill`] and writes
//! only in [`Session::flush`]; all else is done in memory, so that a burst goes out in one write. What it read
//! lies in the [`Shared`] scratch, and [`Session::next`] takes it from there to the last byte before anybody else
//! reads. Time is an argument.
//!
//! A session at rest is a descriptor and a few numbers: it has no codec and no buffer. The bytes that the codec
//! took are counted against the shortest wire form of the messages it gave: while the two are equal no byte is
//! left inside, be it half a frame, a fragment or a header; once `flush` has succeeded none waits to go out either.
//! Such a codec is as good as a new one, and goes to whoever needs one next. A peer that fragments its messages is
//! never even and keeps its codec.

use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::time::Duration;

use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message, Utf8Bytes};

use crate::config::{
    CLOSE_TIME_MAX, CODEC_BYTES, Config, DRAIN_BYTES_MAX, FIRST_MESSAGE_TIME_MAX, HEAD_BYTES_MAX,
    HEAD_TIME_MAX, QUEUE_BYTES_SPARE, READ_BYTES_MAX, SPARE_WORKS_MAX, STALL_TIME_MAX,
};
use crate::http::{self, Answer, Door};
use crate::metrics::Metrics;
use crate::stamp::Stamp;

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
    /// Whether there is no place for another WebSocket.
    pub full: bool,
    codec_config: WebSocketConfig,
    scratch: Box<[u8]>,
    /// The part of the scratch that was read and not yet taken.
    unread: Range<usize>,
    /// For the next session that has something to do.
    spare: Spare,
}

impl Shared {
    /// For sessions under this configuration.
    pub fn new(config: Config) -> Shared {
        let queue = config.queue_bytes_max();
        Shared {
            codec_config: WebSocketConfig::default()
                .read_buffer_size(CODEC_BYTES)
                // Nothing is written before `flush`.
                .write_buffer_size(queue)
                .max_write_buffer_size(queue + QUEUE_BYTES_SPARE)
                .max_message_size(Some(config.message_bytes_max))
                .max_frame_size(Some(config.message_bytes_max)),
            config,
            metrics: Metrics::default(),
            now: Duration::ZERO,
            full: false,
            scratch: vec![0; READ_BYTES_MAX].into_boxed_slice(),
            unread: 0..0,
            spare: Vec::new(),
        }
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
    /// The peer showed no life while another claimed its id.
    Replaced,
    /// The peer showed no life for two ping intervals.
    Silent,
    /// The server stops.
    GoingAway,
}

impl End {
    /// All ways a WebSocket may end.
    pub const ALL: [End; 11] = [
        End::Left,
        End::Lost,
        End::Protocol,
        End::NotUtf8,
        End::TooBig,
        End::RateLimited,
        End::Unregistered,
        End::Slow,
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
            End::Replaced => (4000, "replaced"),
            End::Silent => (4001, "no sign of life"),
            End::GoingAway => (1001, "server going away"),
        };
        Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) })
    }

    /// What an error of the codec means. The one place that knows.
    fn of(error: &Error) -> End {
        match error {
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Lost,
            Error::Protocol(_) | Error::AttackAttempt => End::Protocol,
            Error::Utf8(_) => End::NotUtf8,
            Error::Capacity(CapacityError::MessageTooLong { .. }) => End::TooBig,
            Error::WriteBufferFull(_) => End::Slow,
            _ => End::Lost,
        }
    }
}

/// What a session has to say to the server.
#[derive(Debug)]
pub enum Event {
    /// It speaks WebSocket from now on, in this room.
    Upgraded(String),
    /// A message came, text or binary. One that is not UTF-8, and so no JSON, comes as an empty one, which is none
    /// either.
    Message(Utf8Bytes),
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
    /// HTTP: the head as far as it came, then the response as far as it is not sent.
    http: Vec<u8>,
    codec: Option<WebSocketContext>,
    /// Bytes that the codec took and that no message accounts for.
    unaccounted: usize,
    /// Bytes that wait to be sent, at most: pongs that the codec left out are counted until all is sent.
    queued: usize,
    /// When the peer last took a byte, or the queue ceased to be empty.
    progress: Duration,
    /// Whether something found no room in the queue since the peer last took a byte.
    full: bool,
    /// Whether the buffers have grown beyond what is worth keeping.
    grown: bool,
    /// What was thrown away while draining.
    thrown_away: usize,
}

impl Work {
    fn codec(&mut self, config: WebSocketConfig) -> &mut WebSocketContext {
        self.codec.get_or_insert_with(|| WebSocketContext::new(Role::Server, Some(config)))
    }

    /// Notes a message that will be sent. The codec leaves out pongs rather than hold more than it may.
    fn queue(&mut self, payload: usize, shared: &Shared) {
        if self.queued == 0 {
            self.progress = shared.now;
        }
        let queued = self.queued + shortest_frame(payload);
        self.queued = queued.min(shared.codec_config.max_write_buffer_size);
        self.grown |= self.queued > CODEC_BYTES;
    }

    /// Gives the codec room for a Close frame, which would be lost for good where pongs have taken it. A pong that
    /// still waits goes before it.
    fn make_room_for_close<S: Write>(&mut self, config: WebSocketConfig) {
        let codec = self.codec(config);
        codec.set_config(|config| config.max_write_buffer_size += QUEUE_BYTES_SPARE);
        let _ = codec.flush(&mut Wire::<S>::nowhere());
    }
}

impl<S: Stream> Session<S> {
    /// A connection that was just accepted.
    pub fn new(stream: S, door: Door, now: Duration) -> Session<S> {
        Session {
            stream,
            door,
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

    fn has_codec(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.codec.is_some())
    }

    /// The stream, for tests.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    // ---- In ----

    /// Reads once, as much as the scratch holds. [`Session::next`] is to be called until it has no more.
    pub fn fill(&mut self, shared: &mut Shared) -> Fill {
        let read = loop {
            match self.stream.read(&mut shared.scratch) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(n) if n > 0 => {
                shared.unread = 0..n;
                shared.metrics.bytes_in += n as u64;
                self.heard = shared.now.into();
                self.pinged = None;
                self.drained = n < shared.scratch.len();
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
    pub fn next(&mut self, shared: &mut Shared) -> Option<Event> {
        loop {
            let is_empty = shared.unread.is_empty();
            let event = match self.phase {
                Phase::Head if !is_empty => self.take_head(shared),
                // The codec may hold whole messages when the scratch is empty.
                Phase::Open | Phase::Closing if !is_empty || self.has_codec() => {
                    match self.take_message(shared) {
                        Ok(event) => event,
                        Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return None,
                        Err(error) => {
                            self.fail(End::of(&error), shared);
                            None
                        }
                    }
                }
                Phase::Ending | Phase::Draining if !is_empty => {
                    let work = self.work.get_or_insert_default();
                    work.thrown_away += shared.unread.len();
                    if work.thrown_away > DRAIN_BYTES_MAX {
                        self.phase = Phase::Over;
                    }
                    shared.unread = 0..0;
                    None
                }
                _ => {
                    shared.unread = 0..0;
                    return None;
                }
            };
            if event.is_some() {
                return event;
            }
        }
    }

    fn take_head(&mut self, shared: &mut Shared) -> Option<Event> {
        let http = &mut begin(&mut self.work, &mut shared.spare).http;
        let searched = http.len();
        // A byte more than allowed is enough to know that the head is too large.
        let room = HEAD_BYTES_MAX + 1 - searched;
        let read = &shared.scratch[shared.unread.clone()];
        http.extend_from_slice(&read[..read.len().min(room)]);
        let answer = match http::head_end(http, searched) {
            Some(end) if end <= HEAD_BYTES_MAX => {
                shared.unread.start += end - searched;
                http::answer(&http[..end], self.door, &shared.config, shared.full, &shared.metrics)
            }
            None if http.len() <= HEAD_BYTES_MAX => {
                shared.unread = 0..0;
                return None;
            }
            _ => http::head_too_large(http),
        };
        self.answer(answer, shared)
    }

    fn answer(&mut self, answer: Answer, shared: &mut Shared) -> Option<Event> {
        let work = begin(&mut self.work, &mut shared.spare);
        match answer {
            Answer::Upgrade { response, room } => {
                work.http = response;
                self.phase = Phase::Open;
                self.deadline = Some((shared.now + FIRST_MESSAGE_TIME_MAX).into());
                Some(Event::Upgraded(room))
            }
            Answer::Plain { status, response, refuses_upgrade } => {
                if refuses_upgrade {
                    *shared.metrics.refused_upgrades.entry(status).or_default() += 1;
                }
                work.http = response;
                self.finish(End::Http, shared.now);
                None
            }
        }
    }

    fn take_message(&mut self, shared: &mut Shared) -> Result<Option<Event>, Error> {
        let work = begin(&mut self.work, &mut shared.spare);
        let unread = &shared.scratch[shared.unread.clone()];
        let mut wire = Wire { unread, stream: None::<&mut S>, written: 0 };
        let read = work.codec(shared.codec_config).read(&mut wire);
        let taken = unread.len() - wire.unread.len();
        shared.unread.start += taken;
        work.unaccounted += taken;
        work.grown |= work.unaccounted > CODEC_BYTES;
        let message = read?;
        if !message.is_close() {
            work.unaccounted -= shortest_frame(message.len()) + MASK_BYTES;
        }
        match message {
            Message::Close(_) => {
                // The codec has the reply ready, or this is the reply to ours.
                work.make_room_for_close::<S>(shared.codec_config);
                self.closed = true;
                self.finish(End::Left, shared.now);
                Ok(None)
            }
            Message::Ping(data) => {
                // The codec has a pong ready.
                work.queue(data.len(), shared);
                Ok(None)
            }
            Message::Text(text) if self.is_open() => Ok(Some(Event::Message(text))),
            Message::Binary(data) if self.is_open() => {
                Ok(Some(Event::Message(Utf8Bytes::try_from(data).unwrap_or_default())))
            }
            _ => Ok(None),
        }
    }

    // ---- Out ----

    /// Whether all of these find room in the queue. A session that is no longer open takes, and forgets, all.
    pub fn has_room(&mut self, texts: &[String], shared: &Shared) -> bool {
        let bytes: usize = texts.iter().map(|text| shortest_frame(text.len())).sum();
        let queued = self.work.as_ref().map_or(0, |work| work.queued);
        let fits = !self.is_open() || queued + bytes <= shared.config.queue_bytes_max();
        // Who has taken all is not slow, whatever does not fit.
        if let Some(work) = self.work.as_mut().filter(|_| !fits && queued > 0) {
            work.full = true;
        }
        fits
    }

    /// Queues a message of the server's own. A peer that would miss it, because its queue is full, is closed.
    pub fn send(&mut self, text: String, shared: &mut Shared) {
        if !self.is_open() {
            return;
        }
        if self.has_room(std::slice::from_ref(&text), shared) {
            self.write(Message::text(text), shared);
        } else {
            self.close(End::Slow, shared);
        }
    }

    /// Queues a ping.
    pub fn ping(&mut self, shared: &mut Shared) {
        if self.is_open() {
            self.pinged = Some(shared.now.into());
            self.write(Message::Ping(Bytes::new()), shared);
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
        work.make_room_for_close::<S>(shared.codec_config);
        // It says that it would block, and has queued the frame.
        let _ = work.codec(shared.codec_config).close(&mut Wire::<S>::nowhere(), end.close_frame());
    }

    fn write(&mut self, message: Message, shared: &mut Shared) {
        let work = begin(&mut self.work, &mut shared.spare);
        work.queue(message.len(), shared);
        match work.codec(shared.codec_config).write(&mut Wire::<S>::nowhere(), message) {
            Ok(()) => {}
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.fail(End::of(&error), shared),
        }
    }

    /// Writes as much as the stream takes.
    pub fn flush(&mut self, shared: &mut Shared) {
        if matches!(self.phase, Phase::Head | Phase::Draining | Phase::Over) {
            return;
        }
        let Some(work) = &mut self.work else { return };
        let mut wire = Wire { unread: &[], stream: Some(&mut self.stream), written: 0 };
        let mut flushed = flush_http(&mut work.http, &mut wire);
        if flushed.is_ok()
            && let Some(codec) = &mut work.codec
        {
            // Twice, because a pong that found no room is queued only after the first.
            flushed = codec.flush(&mut wire).and_then(|()| codec.flush(&mut wire));
        }
        if wire.written > 0 {
            shared.metrics.bytes_out += wire.written as u64;
            work.progress = shared.now;
            work.full = false;
            work.queued = work.queued.saturating_sub(wire.written);
        }
        match flushed {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => self.flushed(shared),
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.over(End::Lost),
        }
    }

    fn flushed(&mut self, shared: &mut Shared) {
        match self.phase {
            Phase::Open => {
                let mut work = self.work.take().expect("something was flushed");
                work.queued = 0;
                if work.unaccounted > 0 {
                    self.work = Some(work);
                } else if !work.grown && shared.spare.len() < SPARE_WORKS_MAX {
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

    /// Looks at the clock. Called about every second.
    pub fn tick(&mut self, shared: &mut Shared) {
        let now = shared.now;
        if self.deadline.is_some_and(|deadline| deadline.get() <= now) {
            match self.phase {
                Phase::Head => {
                    let head = self.work.as_ref().map_or(&[][..], |work| &work.http);
                    self.answer(http::timeout(head), shared);
                }
                Phase::Open => self.close(End::Unregistered, shared),
                Phase::Closing | Phase::Ending | Phase::Draining | Phase::Over => self.phase = Phase::Over,
            }
        }
        if !self.is_open() {
            return;
        }
        let (silence, interval) = (now - self.heard.get(), shared.config.ping_interval);
        let queue = shared.config.queue_bytes_max();
        let stalled = self
            .work
            .as_ref()
            .is_some_and(|work| (work.full || work.queued > queue) && now - work.progress >= STALL_TIME_MAX);
        // A peer must have been asked: after a stop of the server itself, silence says nothing.
        let asked_in_vain = self.pinged.is_some_and(|asked| now - asked.get() >= interval);
        if silence >= 2 * interval && asked_in_vain {
            self.close(End::Silent, shared);
        } else if stalled {
            self.close(End::Slow, shared);
        } else if silence >= interval && self.pinged.is_none() {
            self.ping(shared);
        }
    }
}

/// The stream as the codec sees it: it reads from the scratch, and writes only where it is let.
struct Wire<'a, S> {
    unread: &'a [u8],
    stream: Option<&'a mut S>,
    written: usize,
}

impl<S> Wire<'_, S> {
    /// For what is to be queued.
    fn nowhere() -> Self {
        Wire { unread: &[], stream: None, written: 0 }
    }
}

impl<S> Read for Wire<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.unread.read(buffer)
    }
}

impl<S: Write> Write for Wire<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stream = self.stream.as_mut().ok_or(ErrorKind::WouldBlock)?;
        loop {
            match stream.write(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                written => {
                    self.written += written.as_ref().copied().unwrap_or(0);
                    return written;
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The work of a session, which begins now if it has none.
fn begin<'a>(work: &'a mut Option<Box<Work>>, spare: &mut Spare) -> &'a mut Work {
    work.get_or_insert_with(|| spare.pop().unwrap_or_default())
}

fn flush_http(http: &mut Vec<u8>, wire: &mut impl Write) -> Result<(), Error> {
    while !http.is_empty() {
        let written = wire.write(http)?;
        http.drain(..written);
    }
    Ok(())
}

/// What a frame from a client has besides (RFC 6455 section 5.3).
const MASK_BYTES: usize = 4;

/// The length of the shortest frame with this payload, unmasked (RFC 6455 section 5.2).
fn shortest_frame(payload: usize) -> usize {
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload
}
