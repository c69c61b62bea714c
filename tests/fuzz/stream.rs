//! The bytes of WebSocket peers, cut at any position, to sessions whose writes block at any position. The output is
//! that of RFC 6455, every queued message is sent once and in order, and memory is bounded.

#![cfg_attr(not(test), no_main)]

mod reading;

use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::limits::{
    BASE_BYTES, CODEC_BYTES, CONNECTION_BYTES, CONTROL_QUEUE_BYTES_MAX, HEAD_TIME_MAX, LINGER_BYTES_MAX,
    QUEUE_BYTES_RESERVE, READ_BYTES_MAX, SPARE_BYTES_MAX,
};
use noroshi::message::Message;
use noroshi::server::admission::{Decision, LimitCheck};
use noroshi::session::{CloseReason, Event, ReadOutcome, Scratch, Session, SharedFrame, SharedState};
use noroshi_test_support::answer::answer;
use noroshi_test_support::pipe::{CLOSE, PING, PONG, Pipe, REQUEST, TEXT, frame, frames};
use reading::{BINARY, MESSAGE_BYTES_MAX, Reading};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// The first byte selects the configuration, the others the events; see `World::step`.
pub fn check(mut data: &[u8]) {
    let Some(&how) = data.split_off_first() else { return };
    let mut world = World::new(how);
    for _ in 0..500 {
        if world.step(&mut data).is_none() {
            break;
        }
        world.check();
    }
    world.end();
}

/// Two connections, because sessions share a scratch buffer and recycle their buffers.
struct World {
    context: ServerContext,
    peers: [Peer; 2],
}

struct ServerContext {
    shared: SharedState,
    scratch: Scratch,
    /// Bytes allocated by the sessions and their shared state.
    held: isize,
}

struct Peer {
    session: Session<Pipe>,
    /// Bytes that the peer has sent and that have not arrived.
    coming: Vec<u8>,
    brought: usize,
    reading: Reading,
    /// Number of messages that the session has returned.
    received: usize,
    /// Numbers of the messages that the session has accepted.
    sent: Vec<usize>,
    pings: usize,
    /// All bytes sent to the peer.
    output: Vec<u8>,
    /// Why the server closed the session.
    closed: Option<CloseReason>,
    upgraded: bool,
    /// Whether the session ends without a Close frame.
    ends_without_close_frame: bool,
    /// Number of events after which the rest of a read is held. 0: never.
    hold_after: usize,
    /// Whether TCP broke or a timeout passed, so that queued bytes may be lost.
    cut: bool,
}

impl World {
    fn new(how: u8) -> World {
        let spare = match how % 4 {
            0 | 1 => None,
            2 => Some(0),
            _ => Some(64 * 1024),
        };
        let memory_bytes_max = spare.map(|spare| BASE_BYTES + 2 * CONNECTION_BYTES + spare);
        let config = Config { message_bytes_max: MESSAGE_BYTES_MAX, memory_bytes_max, ..Config::default() };
        let mut shared = SharedState::new(config);
        // The first entry of a map allocates.
        shared.metrics.refused_upgrades.insert(408, 0);
        let mut peers = [Peer::new(&mut shared), Peer::new(&mut shared)];
        if how & 4 > 0 {
            peers[1].end_without_close_frame();
        }
        World { context: ServerContext { shared, scratch: Scratch::default(), held: 0 }, peers }
    }

    fn step(&mut self, data: &mut &[u8]) -> Option<()> {
        let mut byte = || data.split_off_first().copied();
        let what = byte()?;
        let World { context, peers } = self;
        let peer = &mut peers[usize::from(what >> 7)];
        // Small and large numbers.
        let number = |n: u8| if n < 128 { usize::from(n) } else { usize::from(n) * 512 };
        match what % 16 {
            // Arbitrary bytes of the peer.
            0 => {
                let length = usize::from(byte()?).min(data.len());
                peer.coming.extend_from_slice(data.split_off(..length)?);
            }
            // A frame of the peer.
            1..=4 => {
                let first = byte()?;
                let length = usize::from(byte()?).min(data.len());
                peer.coming.extend(frame(first, data.split_off(..length)?));
            }
            // A large frame of the peer.
            5 => {
                let first = byte()?;
                let fill = byte()?;
                let length = u16::from_be_bytes([byte()?, byte()?]);
                let length = usize::from(length) % (2 * MESSAGE_BYTES_MAX);
                peer.coming.extend(frame(first, &vec![fill; length]));
            }
            6..=8 => peer.transfer(number(byte()?), context),
            9 => {
                peer.session.stream().writable_bytes += number(byte()?);
                peer.transfer(0, context);
            }
            10..=11 => {
                let length = u16::from_be_bytes([byte()?, byte()?]).into();
                if length % 4 == 2 {
                    broadcast(peers, usize::from(what >> 7), length, context);
                } else {
                    peer.send(length, context);
                }
            }
            12 => {
                peer.pings += usize::from(peer.session.is_open());
                peer.with_allocation_count(context, |session, context| session.ping(&mut context.shared));
            }
            13 => match byte()? {
                0..64 => peer.session.on_registered(),
                64..128 => peer.session.pause(),
                128..192 => {
                    peer.session.resume(context.shared.now);
                    peer.transfer(0, context);
                }
                n => peer.hold_after = usize::from(n % 8),
            },
            14 => {
                context.shared.now += Duration::from_millis(100 * u64::from(byte()?));
                for peer in peers {
                    peer.tick(context);
                }
            }
            _ => match byte()? % 8 {
                0 => peer.session.stream().is_broken = true,
                1 => peer.session.stream().is_eof = true,
                n => {
                    let end = [CloseReason::RateLimited, CloseReason::Replaced, CloseReason::GoingAway]
                        [usize::from(n) % 3];
                    if peer.session.is_open() {
                        peer.closed = Some(end);
                    }
                    peer.with_allocation_count(context, |session, context| {
                        session.close(end, &mut context.shared)
                    });
                }
            },
        }
        Some(())
    }

    fn check(&mut self) {
        let is_limited = self.context.shared.config.memory_bytes_max.is_some();
        for peer in &mut self.peers {
            peer.check(is_limited);
        }
        // All memory is charged, except spare buffers and one message in transit.
        let spare = 2 * (2 * SPARE_BYTES_MAX + CODEC_BYTES) + 4 * MESSAGE_BYTES_MAX;
        let charged = self.context.shared.budget.used() - BASE_BYTES;
        assert!(self.context.held <= (charged + spare) as isize, "{} > {charged}", self.context.held);
        // A Close frame, a pong and the always-granted queue are charged even beyond the limit.
        if let Some(max) = self.context.shared.config.memory_bytes_max {
            assert!(charged <= max - BASE_BYTES + 4 * CONNECTION_BYTES, "{charged} bytes of {max}");
        } else {
            // One message may exceed the limit for messages of the server. Its length has 16 bits.
            let config = &self.context.shared.config;
            let limit = config.queue_bytes_max(false) + QUEUE_BYTES_RESERVE + config.queue_bytes_burst_max();
            let queue = limit + (1 << 16);
            let control = 4 * CONTROL_QUEUE_BYTES_MAX;
            let incoming = 2 * MESSAGE_BYTES_MAX + 4 * CODEC_BYTES + READ_BYTES_MAX;
            let bound = 2 * (CONNECTION_BYTES + 2 * queue + control + incoming);
            assert!(charged <= bound, "{charged} bytes are charged");
        }
        if self.peers.iter().all(|peer| peer.session.is_idle()) {
            assert_eq!(charged, 2 * CONNECTION_BYTES);
        }
    }

    fn end(mut self) {
        for peer in &mut self.peers {
            peer.session.resume(self.context.shared.now);
            peer.session.stream().writable_bytes = usize::MAX;
            peer.transfer(usize::MAX, &mut self.context);
        }
        self.check();
        for peer in &mut self.peers {
            if peer.session.is_open() && peer.reading.is_complete() {
                assert!(peer.session.is_idle());
            }
            let whole = !peer.cut && peer.brought <= LINGER_BYTES_MAX;
            peer.check_output(whole);
        }
        // After the end nothing happens any more.
        for _ in 0..3 {
            self.context.shared.now += Duration::from_secs(60);
            for peer in &mut self.peers {
                peer.tick(&mut self.context);
            }
        }
        for mut peer in self.peers {
            peer.is_over(&mut self.context);
            peer.check_output(false);
            peer.session.free(&mut self.context.shared);
        }
        assert_eq!(self.context.shared.budget.used(), BASE_BYTES);
    }
}

/// Forwards a message to a peer, and to the other one if it has got as many messages: their queues share it.
fn broadcast(peers: &mut [Peer; 2], first: usize, length: usize, context: &mut ServerContext) {
    let number = peers[first].sent.len();
    let frame = peers[first].with_allocation_count(context, |_, context| {
        let text = text(number, length);
        SharedFrame::text(&text, &context.shared)
    });
    for peer in peers.iter_mut().filter(|peer| peer.sent.len() == number) {
        let is_queued = peer.with_allocation_count(context, |session, context| {
            session.is_open() && session.forward_shared(&frame, &mut context.shared)
        });
        if is_queued {
            peer.sent.push(length);
        }
    }
    peers[first].with_allocation_count(context, |_, _| drop(frame));
}

impl Peer {
    fn new(shared: &mut SharedState) -> Peer {
        Peer {
            session: Session::new(Pipe::default(), HEAD_TIME_MAX, shared),
            coming: REQUEST.into(),
            brought: 0,
            reading: Reading::default(),
            received: 0,
            sent: Vec::new(),
            pings: 0,
            output: Vec::new(),
            closed: None,
            upgraded: false,
            ends_without_close_frame: false,
            hold_after: 0,
            cut: false,
        }
    }

    fn end_without_close_frame(&mut self) {
        self.ends_without_close_frame = true;
        self.session.end_without_close_frame();
    }

    /// Runs an operation of the session and counts its allocations.
    fn with_allocation_count<T>(
        &mut self,
        context: &mut ServerContext,
        work: impl FnOnce(&mut Session<Pipe>, &mut ServerContext) -> T,
    ) -> T {
        // The pipe's buffers do not belong to the session.
        let pipe = self.session.stream().output.capacity() as isize;
        let region = Region::new(ALLOCATOR);
        let done = work(&mut self.session, context);
        let change = region.change();
        context.held += change.bytes_allocated as isize - change.bytes_deallocated as isize;
        context.held += pipe - self.session.stream().output.capacity() as isize;
        done
    }

    /// Forwards a message, or sends one of the server.
    fn send(&mut self, length: usize, context: &mut ServerContext) {
        let number = self.sent.len();
        let is_forwarded = length.is_multiple_of(2);
        let (was_open, is_rejected) = self.with_allocation_count(context, |session, context| {
            let text = text(number, length);
            let shared = &mut context.shared;
            let was_open = session.is_open();
            let is_rejected = is_forwarded && !session.can_queue(std::slice::from_ref(&text), shared);
            if !is_rejected {
                session.send(text, shared);
            }
            (was_open, is_rejected)
        });
        match (was_open, self.session.is_open()) {
            (true, true) if is_rejected => {}
            (true, true) => self.sent.push(length),
            (true, false) => {
                assert!(!is_forwarded, "a message that fits is queued");
                self.closed = self.session.close_reason();
            }
            (false, _) => {}
        }
    }

    fn tick(&mut self, context: &mut ServerContext) {
        self.with_allocation_count(context, |session, context| session.tick(&mut context.shared));
        if self.upgraded
            && !self.session.is_open()
            && let Some(end @ (CloseReason::Unregistered | CloseReason::Silent | CloseReason::Slow)) =
                self.session.close_reason()
        {
            self.closed = Some(end);
        }
        self.cut |= self.session.is_closed();
        self.transfer(0, context);
    }

    /// Delivers this many bytes and lets the session read and write.
    fn transfer(&mut self, bytes: usize, context: &mut ServerContext) {
        let bytes: Vec<u8> = self.coming.drain(..bytes.min(self.coming.len())).collect();
        self.brought += bytes.len();
        self.reading.take(&bytes);
        let pipe = self.session.stream();
        pipe.input.extend(bytes);
        // A short read shows that no more input is available.
        pipe.input.make_contiguous();
        let half_closed = pipe.is_eof;
        let messages = std::mem::take(&mut self.reading.messages);
        let mut received = self.received;
        let mut upgraded = self.upgraded;
        let hold_after = self.hold_after;
        self.with_allocation_count(context, |session, context| {
            while !session.is_closed() && !session.is_paused() {
                let fill = session.read(&mut context.scratch, &mut context.shared);
                let mut events = 0;
                let mut is_held = false;
                while let Some(event) = session.next_event(&mut context.scratch, &mut context.shared) {
                    match event {
                        Event::Request(head) => {
                            assert!(!upgraded);
                            let config = &context.shared.config;
                            let wall = Duration::ZERO;
                            let answer = answer(&head, ListenerKind::Main, config, false, wall, |_, _| {
                                LimitCheck::Allowed
                            });
                            let Decision::Upgrade { bytes, target, .. } = answer else {
                                panic!("{answer:?}")
                            };
                            assert_eq!(target.room, "tea");
                            session.accept(bytes, &mut context.shared);
                            upgraded = true;
                            continue;
                        }
                        Event::Rejected(status, reason) => panic!("{status} {}", reason.message),
                        Event::Ping(payload) => {
                            session.pong(payload, &mut context.shared);
                            continue;
                        }
                        Event::Overhead => continue,
                        Event::Message(Message::Text(text)) => {
                            assert_eq!((TEXT, text.as_bytes()), messages[received].parts())
                        }
                        Event::Message(Message::Binary(bytes)) => {
                            assert_eq!((BINARY, bytes), messages[received].parts())
                        }
                    }
                    received += 1;
                    events += 1;
                    if events == hold_after {
                        is_held = session.defer_input(&mut context.scratch, &mut context.shared);
                    }
                }
                let is_end_awaited = fill == ReadOutcome::Short && half_closed;
                let has_more =
                    is_held || is_end_awaited || matches!(fill, ReadOutcome::Full | ReadOutcome::Deferred);
                if !has_more {
                    break;
                }
            }
            session.flush(&mut context.shared);
        });
        self.reading.messages = messages;
        self.received = received;
        self.upgraded = upgraded;
        let pipe = self.session.stream();
        self.cut |= pipe.is_broken || pipe.is_eof;
        self.output.append(&mut pipe.output);
    }

    fn check(&mut self, is_limited: bool) {
        if self.session.is_paused() {
            assert!(self.received <= self.reading.messages.len());
        } else if self.session.is_open() {
            assert_eq!(self.received, self.reading.messages.len());
            assert_eq!((self.session.close_reason(), self.reading.end), (None, None));
        } else if let Some(end) = self.closed {
            assert_eq!(self.session.close_reason(), Some(end));
        } else if self.upgraded {
            let end = self.session.close_reason().unwrap();
            let other = match end {
                CloseReason::Lost => self.cut,
                CloseReason::NoMemory => is_limited,
                _ => false,
            };
            assert!(other || self.reading.end == Some(end), "{end:?}");
        }
    }

    /// Asserts that the session has ended and does nothing more.
    fn is_over(&mut self, context: &mut ServerContext) {
        assert!(self.session.is_closed());
        let writes = self.session.stream().writes;
        let end = self.session.close_reason();
        self.session.send("late".into(), &mut context.shared);
        self.session.ping(&mut context.shared);
        self.session.close(CloseReason::GoingAway, &mut context.shared);
        self.session.tick(&mut context.shared);
        self.session.flush(&mut context.shared);
        assert!(self.session.next_event(&mut context.scratch, &mut context.shared).is_none());
        assert_eq!((self.session.stream().writes, self.session.close_reason()), (writes, end));
    }

    fn check_output(&self, whole: bool) {
        if !self.upgraded {
            let is = |status: &[u8]| self.output.iter().zip(status).all(|(a, b)| a == b);
            assert!(is(b"HTTP/1.1 408 ") || is(b"HTTP/1.1 503 "));
            return;
        }
        let head = &self.output[..self.output.len().min(256)];
        let Some(head) = head.windows(4).position(|window| window == b"\r\n\r\n") else {
            assert!(!whole);
            return;
        };
        assert!(self.output.starts_with(b"HTTP/1.1 101 "));
        let (frames, rest) = frames(&self.output[head + 4..]);
        assert!(!whole || rest.is_empty());
        let mut texts = 0;
        let mut pings = 0;
        let mut answered = 0;
        let mut closed = false;
        for (first, payload) in frames {
            assert!(!closed, "no frame follows a Close frame");
            match first {
                TEXT => {
                    assert!(payload == text(texts, self.sent[texts]).as_bytes());
                    texts += 1;
                }
                PING => pings += 1,
                PONG => {
                    // Pings may be left unanswered, but none is answered twice or out of order.
                    let pings = &self.reading.pings[answered..];
                    answered +=
                        1 + pings.iter().position(|ping| *ping == payload).expect("each pong answers a ping");
                }
                CLOSE => {
                    closed = true;
                    match self.session.close_reason().unwrap() {
                        _ if self.ends_without_close_frame => {
                            assert_eq!(
                                Some(&payload),
                                self.reading.reply.as_ref(),
                                "it answers a Close frame"
                            );
                        }
                        CloseReason::Left => assert_eq!(Some(&payload), self.reading.reply.as_ref()),
                        end => assert_eq!(payload[..2], code(end).to_be_bytes()),
                    }
                }
                _ => panic!("{first:#x} {payload:?}"),
            }
        }
        if whole {
            assert_eq!(texts, self.sent.len());
            let is_left = self.session.close_reason() == Some(CloseReason::Left);
            match self.ends_without_close_frame {
                // A Close frame of the peer may also arrive while the server ends the connection.
                true => assert!(closed || !is_left),
                false => assert_eq!(closed, !self.session.is_open()),
            }
            assert!(pings >= self.pings.min(1));
        }
    }
}

/// Returns a distinct text for this number, of at least the minimum length.
fn text(number: usize, length: usize) -> String {
    format!("{number} {}", "x".repeat(length))
}

fn code(end: CloseReason) -> u16 {
    match end {
        CloseReason::Http | CloseReason::Left | CloseReason::Lost => panic!("nothing is said"),
        CloseReason::Finished => 1000,
        CloseReason::GoingAway => 1001,
        CloseReason::Protocol => 1002,
        CloseReason::NotUtf8 => 1007,
        CloseReason::RateLimited | CloseReason::Unregistered => 1008,
        CloseReason::TooBig => 1009,
        CloseReason::Slow | CloseReason::NoMemory => 1013,
        CloseReason::Replaced => 4000,
        CloseReason::Silent => 4001,
    }
}
