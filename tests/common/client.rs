//! A client of frames made by hand, on a blocking socket: it costs little, and may do what no client should.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use super::pipe::{CLOSE, PING, PONG, REQUEST, TEXT, frame, plain_frame};
use super::process::Patient;
use super::transcript::Heard;

/// After so long without a byte, what a client waits for will not come.
const GIVE_UP: Duration = Duration::from_secs(30);

pub struct Client {
    stream: Patient,
    /// Whether it answers pings and Closes that it hears.
    pub answers: bool,
}

impl Client {
    /// A connection that has said nothing yet.
    pub fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).unwrap())
    }

    /// The same with a receive buffer of this size, which is how much a client takes that does not read.
    pub fn with_buffer(address: SocketAddr, bytes: usize) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect(&address.into()).unwrap();
        Client::over(socket.into())
    }

    /// A connection that is there already.
    pub fn over(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(GIVE_UP)).unwrap();
        stream.set_write_timeout(Some(GIVE_UP)).unwrap();
        // The socket of a file has no such thing.
        let _ = stream.set_nodelay(true);
        Client { stream: Patient(stream), answers: true }
    }

    /// A WebSocket in a room.
    pub fn open(address: SocketAddr, room: &str) -> Client {
        Client::connect(address).upgraded(room)
    }

    /// From now on it speaks WebSocket, in this room.
    pub fn upgraded(self, room: &str) -> Client {
        self.upgraded_at(&format!("/ws/{room}"))
    }

    /// The same at a path of another protocol.
    pub fn upgraded_at(mut self, path: &str) -> Client {
        self.send(REQUEST.replace("/ws/tea", path).as_bytes());
        // What comes in the same segment is for later.
        let mut bytes = [0; 1024];
        let end = loop {
            let n = match self.stream.0.peek(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                peeked => peeked.unwrap(),
            };
            assert!(n > 0, "a head ends");
            let end = bytes[..n].windows(4).position(|end| end == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
        };
        self.stream.read_exact(&mut bytes[..end]).unwrap();
        let head = String::from_utf8_lossy(&bytes[..end]);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        self
    }

    /// The head of the answer to its request, and what came with it.
    pub fn head(&mut self) -> String {
        let (mut head, mut chunk) = (Vec::new(), [0; 1024]);
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            let n = self.stream.read(&mut chunk).unwrap();
            assert!(n > 0, "a head ends: {head:?}");
            head.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8(head).unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The same to a server that may have closed already.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn say(&mut self, message: Value) {
        self.say_text(&message.to_string());
    }

    pub fn say_text(&mut self, text: &str) {
        self.send(&plain_frame(TEXT, text.as_bytes()));
    }

    /// Says something, after which all that was said before is known to have been heard.
    pub fn registered(mut self, id: &str) -> Client {
        self.say(json!({"type": "leave", "id": id}));
        self.settle();
        self
    }

    /// Waits until the server has handled all that was sent, and returns the messages that come meanwhile.
    pub fn settle(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        self.send(&frame(PING, b"settle"));
        loop {
            match self.frame() {
                (PONG, data) if data == b"settle" => return messages,
                (TEXT, text) => messages.push(serde_json::from_slice(&text).unwrap()),
                _ => {}
            }
        }
    }

    /// The next text or Close.
    pub fn hear(&mut self) -> Heard {
        loop {
            match self.frame() {
                (TEXT, text) => return Heard::Text(String::from_utf8(text).unwrap()),
                (PING, data) => self.answer(PONG, &data),
                (CLOSE, reason) => {
                    self.answer(CLOSE, &reason);
                    let code = reason.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    return Heard::Closed(code);
                }
                (PONG, _) => {}
                (first, _) => panic!("a server has no frames like {first:#x}"),
            }
        }
    }

    /// Waits for a ping, and answers it.
    pub fn pinged(&mut self) {
        let (first, data) = self.frame();
        assert_eq!(first, PING);
        self.answer(PONG, &data);
    }

    fn answer(&mut self, first: u8, payload: &[u8]) {
        if self.answers {
            // The server may be gone already.
            let _ = self.stream.write_all(&frame(first, payload));
        }
    }

    /// The next message.
    pub fn heard(&mut self) -> Value {
        match self.hear() {
            Heard::Text(text) => serde_json::from_str(&text).unwrap(),
            Heard::Closed(code) => panic!("closed with {code}"),
        }
    }

    /// The next message that is no JSON ping of Ayame's.
    pub fn answered(&mut self) -> Value {
        loop {
            let heard = self.heard();
            if heard["type"] != "ping" {
                return heard;
            }
        }
    }

    /// With which code it is closed, whatever it hears before.
    pub fn closed(&mut self) -> u16 {
        loop {
            if let Heard::Closed(code) = self.hear() {
                return code;
            }
        }
    }

    /// The next frame: its first byte, and its payload.
    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 2];
        self.stream.read_exact(&mut header).unwrap();
        let length = match header[1] {
            126 => u16::from_be_bytes(self.exactly()).into(),
            127 => u64::from_be_bytes(self.exactly()) as usize,
            n => n.into(),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).unwrap();
        (header[0], payload)
    }

    fn exactly<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Takes at most so many bytes of what has come, whatever they are.
    pub fn take(&mut self, bytes: usize) -> usize {
        self.stream.read(&mut vec![0; bytes]).unwrap()
    }

    /// Whether an answer with this status has come. It is not taken.
    pub fn was_answered(&self, status: &str) -> bool {
        self.stream.0.set_nonblocking(true).unwrap();
        let mut head = [0; "HTTP/1.1 200".len()];
        let peeked = self.stream.0.peek(&mut head);
        self.stream.0.set_nonblocking(false).unwrap();
        peeked.is_ok_and(|n| n == head.len()) && head.ends_with(status.as_bytes())
    }

    /// Another handle, for a thread that sends without end.
    pub fn mouth(&self) -> TcpStream {
        self.stream.0.try_clone().unwrap()
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        SockRef::from(&self.stream.0).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Says that it sends no more, but goes on reading.
    pub fn half_close(&self) {
        self.stream.0.shutdown(Shutdown::Write).unwrap();
    }
}
