//! An in-memory stream, a session on it, and WebSocket frames.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::address::Address;
use noroshi::http::{self, ListenerKind, Response};
use noroshi::limits::{ALWAYS_HELD_BYTES, HEAD_TIME_MAX};
use noroshi::message::Message;
use noroshi::server::admission::{Decision, LimitCheck};
use noroshi::session::{Event, ReadOutcome, Scratch, Session, SharedState, Stream};

use super::answer::answer;

/// A WebSocket upgrade request for the room `tea`.
pub const REQUEST: &str = "GET /ws/tea HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The body of every response to an administrative request.
pub const OPERATOR_RESPONSE: &str = "asked";

/// The client's address.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The server's end of an in-memory connection.
#[derive(Default)]
pub struct Pipe {
    /// Bytes that the peer has sent and the session has not read.
    pub input: VecDeque<u8>,
    /// Bytes that the session has sent.
    pub output: Vec<u8>,
    /// Whether the peer has shut its write side down.
    pub is_eof: bool,
    /// Whether reads and writes fail.
    pub is_broken: bool,
    /// Bytes that writes still accept.
    pub writable_bytes: usize,
    /// Whether the session has shut its write side down.
    pub is_write_shut: bool,
    /// Calls of `read` and `write` so far.
    pub reads: usize,
    pub writes: usize,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        if self.is_broken {
            return Err(ErrorKind::ConnectionReset.into());
        }
        match self.input.read(buffer)? {
            0 if !self.is_eof => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        assert!(!self.is_write_shut && !bytes.is_empty());
        if self.is_broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let n = bytes.len().min(self.writable_bytes);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.writable_bytes -= n;
        self.output.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Pipe {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.is_write_shut = true;
        Ok(())
    }
}

/// A session, driven as the server drives it.
pub struct TestSession {
    pub session: Session<Pipe>,
    pub shared: SharedState,
    pub scratch: Scratch,
    /// Received messages, and `+ROOM` for the upgrade.
    pub events: Vec<String>,
    /// Status and log reason of a rejected upgrade.
    pub rejected: Option<(u16, String)>,
    listener: ListenerKind,
    /// Where the peer is, as far as a trusted proxy says.
    pub address: Address,
    /// Whether upgrades find the server full.
    pub is_full: bool,
    /// The time since 1970.
    pub wall: Duration,
}

impl TestSession {
    pub fn new(listener: ListenerKind, config: Config) -> TestSession {
        let pipe = Pipe { writable_bytes: usize::MAX, ..Pipe::default() };
        let mut shared = SharedState::new(config);
        TestSession {
            session: Session::new(pipe, HEAD_TIME_MAX, &mut shared),
            shared,
            scratch: Scratch::default(),
            events: Vec::new(),
            rejected: None,
            listener,
            address: ADDRESS.into(),
            is_full: false,
            wall: Duration::ZERO,
        }
    }

    /// Answers a request as the server does.
    fn answer(&mut self, head: &[u8]) {
        let config = &self.shared.config;
        let is_trusted = self.listener == ListenerKind::Main && config.is_trusted_proxy(self.address);
        let admission = if self.is_full { LimitCheck::ServerFull } else { LimitCheck::Allowed };
        let mut client_address = None;
        let answer = answer(head, self.listener, config, is_trusted, self.wall, |address, _| {
            client_address = address;
            admission
        });
        if let Some(address) = client_address {
            self.address = address.into();
        }
        let response = match answer {
            Decision::Upgrade { bytes, target, .. } => {
                self.session.accept(bytes, &mut self.shared);
                self.events.push(format!("+{}", target.room));
                return;
            }
            Decision::Respond(response) => response,
            Decision::Operator(request) => request.render(OPERATOR_RESPONSE),
            Decision::Resource(request) => request.render(None),
        };
        let bytes = response.bytes.len();
        let fits = bytes <= ALWAYS_HELD_BYTES || self.shared.budget.allows(bytes);
        let is_rejected = self.listener == ListenerKind::Main && !fits;
        let response = if is_rejected { http::no_memory(head) } else { response };
        let Response { status, bytes, reject_reason } = response;
        self.session.respond(bytes, &mut self.shared);
        if let Some(reason) = reject_reason {
            self.rejected = Some((status, reason.message));
        }
    }

    /// Opens a session and discards the response to its upgrade.
    pub fn open(config: Config) -> TestSession {
        let mut test = TestSession::new(ListenerKind::Main, config);
        test.feed(REQUEST.as_bytes());
        assert_eq!(test.events, ["+tea"]);
        assert!(test.take_output().starts_with(b"HTTP/1.1 101 "));
        test.events.clear();
        test
    }

    /// Delivers bytes from the peer and processes the session.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.pipe().input.extend(bytes);
        self.process();
    }

    pub fn process(&mut self) {
        while !self.session.is_closed() {
            let fill = self.session.read(&mut self.scratch, &mut self.shared);
            while let Some(event) = self.session.next_event(&mut self.scratch, &mut self.shared) {
                match event {
                    Event::Request(head) => self.answer(&head),
                    Event::Rejected(status, reason) => self.rejected = Some((status, reason.message)),
                    Event::Message(Message::Text(text)) => self.events.push(text.to_owned()),
                    Event::Message(Message::Binary(bytes)) => {
                        self.events.push(String::from_utf8_lossy(bytes).into_owned())
                    }
                    Event::Ping(payload) => self.session.pong(payload, &mut self.shared),
                    Event::Overhead => {}
                }
            }
            if matches!(fill, ReadOutcome::WouldBlock | ReadOutcome::EndOfStream) {
                break;
            }
        }
        self.session.flush(&mut self.shared);
    }

    /// Advances the clock in steps of one second, as the server does.
    pub fn advance(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.shared.now += Duration::from_secs(1);
            self.session.tick(&mut self.shared);
            self.session.flush(&mut self.shared);
        }
    }

    pub fn pipe(&mut self) -> &mut Pipe {
        self.session.stream()
    }

    /// Returns and clears the bytes sent so far.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pipe().output)
    }

    /// Returns and clears the frames sent so far.
    pub fn take_frames(&mut self) -> Vec<(u8, Vec<u8>)> {
        let sent = self.take_output();
        let (frames, rest) = frames(&sent);
        assert!(rest.is_empty());
        frames
    }
}

/// Returns a masked client frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, [1, 2, 3, 4])
}

/// Returns a client frame whose mask is zero, so that the payload needs no transformation.
pub fn plain_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, [0; 4])
}

fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..=125 => bytes.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
        n => {
            bytes.push(0x80 | 127);
            bytes.extend((n as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    match mask {
        [0, 0, 0, 0] => bytes.extend_from_slice(payload),
        _ => bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask)),
    }
    bytes
}

pub const TEXT: u8 = 0x81;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;
pub const CLOSE: u8 = 0x88;

/// Returns the payload of a Close frame.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// Parses complete server frames. Returns them and the remaining bytes.
pub fn frames(mut bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, &[u8]) {
    let mut frames = Vec::new();
    while bytes.len() >= 2 {
        assert_eq!(bytes[1] & 0x80, 0, "a server does not mask");
        let (header, length) = match bytes[1] {
            126 if bytes.len() < 4 => break,
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            127 if bytes.len() < 10 => break,
            127 => (10, u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize),
            n => (2, usize::from(n)),
        };
        if bytes.len() < header + length {
            break;
        }
        frames.push((bytes[0], bytes[header..header + length].to_vec()));
        bytes = &bytes[header + length..];
    }
    (frames, bytes)
}
