//! A minimal WebSocket client on a blocking socket. It is cheap and can violate the protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use super::pipe::{CLOSE, PING, PONG, REQUEST, TEXT, frame, plain_frame};
use super::process::RetryOnInterrupt;
use super::transcript::Received;

/// Connections from one source address. It has 28,000 ports, and other programs use some of them.
const CONNECTIONS_PER_SOURCE: usize = 4_000;

/// Connects the client with this number of many clients, which have several source addresses.
pub fn connect_numbered(address: SocketAddr, number: usize) -> TcpStream {
    let source = Ipv4Addr::new(127, 0, 0, 1 + (number / CONNECTIONS_PER_SOURCE) as u8);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    setsockopt(&socket, IpBindAddressNoPort, &true).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// Time without a byte after which a read fails the test.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Client {
    stream: RetryOnInterrupt,
    /// Whether pings and Close frames are answered.
    pub answers: bool,
}

impl Client {
    /// Connects without sending anything.
    pub fn connect(address: SocketAddr) -> Client {
        Client::from_stream(TcpStream::connect(address).unwrap())
    }

    /// Connects with this SO_RCVBUF, which limits how much the kernel accepts for a client that does not read.
    pub fn with_buffer(address: SocketAddr, bytes: usize) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect(&address.into()).unwrap();
        Client::from_stream(socket.into())
    }

    /// Wraps a connected stream.
    pub fn from_stream(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(WAIT_TIMEOUT)).unwrap();
        // A Unix socket has no TCP_NODELAY.
        let _ = stream.set_nodelay(true);
        Client { stream: RetryOnInterrupt(stream), answers: true }
    }

    /// Connects and upgrades to a WebSocket in a room.
    pub fn open(address: SocketAddr, room: &str) -> Client {
        Client::connect(address).upgrade(room)
    }

    pub fn upgrade(self, room: &str) -> Client {
        self.upgrade_at(&format!("/ws/{room}"))
    }

    /// Upgrades to a WebSocket at a path of any protocol.
    pub fn upgrade_at(mut self, path: &str) -> Client {
        self.send(REQUEST.replace("/ws/tea", path).as_bytes());
        // Frames may arrive in the same segment. They stay in the socket for later reads.
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

    /// Reads the response head and any bytes that arrive with it.
    pub fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        let mut chunk = [0; 1024];
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

    /// Sends bytes to a server that may have closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn send_json(&mut self, message: Value) {
        self.send_text(&message.to_string());
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&plain_frame(TEXT, text.as_bytes()));
    }

    /// Sends a message that registers the id and waits until the server has handled it.
    pub fn register(mut self, id: &str) -> Client {
        self.send_json(json!({"type": "leave", "id": id}));
        self.sync();
        self
    }

    /// Waits until the server has handled everything that was sent. Returns the messages received until then.
    pub fn sync(&mut self) -> Vec<Value> {
        let mut messages = Vec::new();
        self.send(&frame(PING, b"sync"));
        loop {
            match self.frame() {
                (PONG, data) if data == b"sync" => return messages,
                (TEXT, text) => messages.push(serde_json::from_slice(&text).unwrap()),
                _ => {}
            }
        }
    }

    /// Receives the next text message or Close frame.
    pub fn receive(&mut self) -> Received {
        loop {
            match self.frame() {
                (TEXT, text) => return Received::Text(String::from_utf8(text).unwrap()),
                (PING, data) => self.answer(PONG, &data),
                (CLOSE, reason) => {
                    self.answer(CLOSE, &reason);
                    let code = reason.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    return Received::Closed(code);
                }
                (PONG, _) => {}
                (first, _) => panic!("a server has no frames like {first:#x}"),
            }
        }
    }

    /// Receives a ping and answers it.
    pub fn receive_ping(&mut self) {
        let (first, data) = self.frame();
        assert_eq!(first, PING);
        self.answer(PONG, &data);
    }

    fn answer(&mut self, first: u8, payload: &[u8]) {
        if self.answers {
            // The server may have closed the connection.
            let _ = self.stream.write_all(&frame(first, payload));
        }
    }

    /// Receives the next message as JSON.
    pub fn receive_json(&mut self) -> Value {
        match self.receive() {
            Received::Text(text) => serde_json::from_str(&text).unwrap(),
            Received::Closed(code) => panic!("closed with {code}"),
        }
    }

    /// Receives the next message that is not one of Ayame's JSON pings.
    pub fn receive_response(&mut self) -> Value {
        loop {
            let received = self.receive_json();
            if received["type"] != "ping" {
                return received;
            }
        }
    }

    /// Receives until the server closes the connection. Returns the close code.
    pub fn receive_close(&mut self) -> u16 {
        loop {
            if let Received::Closed(code) = self.receive() {
                return code;
            }
        }
    }

    /// Reads the next frame: its first byte and its payload.
    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; 2];
        self.stream.read_exact(&mut header).unwrap();
        let length = match header[1] {
            126 => u16::from_be_bytes(self.read_array()).into(),
            127 => u64::from_be_bytes(self.read_array()) as usize,
            n => n.into(),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).unwrap();
        (header[0], payload)
    }

    fn read_array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads at most this many bytes and discards them.
    pub fn read_up_to(&mut self, bytes: usize) -> usize {
        self.stream.read(&mut vec![0; bytes]).unwrap()
    }

    /// Returns whether a response with this status has arrived, without consuming it.
    pub fn has_response(&self, status: &str) -> bool {
        self.stream.0.set_nonblocking(true).unwrap();
        let mut head = [0; "HTTP/1.1 200".len()];
        let peeked = self.stream.0.peek(&mut head);
        self.stream.0.set_nonblocking(false).unwrap();
        peeked.is_ok_and(|n| n == head.len()) && head.ends_with(status.as_bytes())
    }

    /// Clones the stream for a thread that writes continuously.
    pub fn clone_stream(&self) -> TcpStream {
        self.stream.0.try_clone().unwrap()
    }

    /// Resets the connection (RST).
    pub fn reset(self) {
        SockRef::from(&self.stream.0).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Shuts the write side down. Reading remains possible.
    pub fn half_close(&self) {
        self.stream.0.shutdown(Shutdown::Write).unwrap();
    }
}
