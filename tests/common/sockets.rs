//! A server and its clients on real sockets in one thread. Waiting runs iterations of the server's loop.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use noroshi::config::{Config, ListenAddress};
use noroshi::http::ListenerKind;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::HOLD_TIME;
use noroshi::protocol::Descriptor;
use noroshi::protocols;
use noroshi::server::Server;
use socket2::{Domain, SockRef, Socket, Type};
use tungstenite::error::ProtocolError;
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::{ClientRequestBuilder, Error, Message, WebSocket};

use super::memory::{holds_messages_of_departed_senders, remaining_state};
use super::transcript::{HttpResponse, Received, SECRET, Transport};

/// Real time after which waiting fails the test.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Net {
    pub server: Server,
    address: SocketAddr,
    clients: BTreeMap<String, Client>,
}

struct Client {
    /// `None` after the connection has ended.
    socket: Option<WebSocket<TcpStream>>,
    received: VecDeque<Received>,
    stalled: bool,
}

impl Net {
    /// Starts a server on a free loopback port.
    pub fn new(config: &Config) -> Net {
        Net::with_protocols(protocols::ALL, config)
    }

    /// Starts a server with these protocols.
    pub fn with_protocols(descriptors: &[&'static Descriptor], config: &Config) -> Net {
        let listen = vec![ListenAddress::Tcp("127.0.0.1:0".parse().unwrap())];
        let server = Server::with_protocols(descriptors, Config { listen, ..config.clone() }).unwrap();
        let address = server.addresses(ListenerKind::Main).next().unwrap();
        Net { server, address, clients: BTreeMap::new() }
    }

    /// Runs the loop until a value is available.
    pub fn wait_until<T>(&mut self, mut condition: impl FnMut(&mut Net) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(it) = condition(self) {
                return it;
            }
            self.server.poll_once(Some(Duration::from_millis(1))).unwrap();
            assert!(began.elapsed() < WAIT_TIMEOUT, "timed out");
        }
    }

    /// Connects without sending anything.
    pub fn connect(&mut self, listener: ListenerKind) -> TcpStream {
        let address = self.server.addresses(listener).next().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Connects from another loopback address.
    pub fn connect_from(&mut self, source: &str, listener: ListenerKind) -> TcpStream {
        let address = self.server.addresses(listener).next().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    }

    /// Reads until the server closes the connection.
    pub fn read_to_end(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        self.wait_until(|_| match stream.read_to_end(&mut all) {
            Ok(_) => Some(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("after {} bytes: {error}", all.len()),
        });
        all
    }

    /// Sends a request and returns the whole response as text.
    pub fn request(&mut self, listener: ListenerKind, request: &str) -> String {
        let mut stream = self.connect(listener);
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8(self.read_to_end(&mut stream)).unwrap()
    }

    pub fn websocket(&mut self, room: &str) -> WebSocket<TcpStream> {
        let slash = if room.is_empty() || room.starts_with('?') { "" } else { "/" };
        self.websocket_at(&format!("/ws{slash}{room}"))
    }

    pub fn websocket_at(&mut self, path: &str) -> WebSocket<TcpStream> {
        let uri = format!("ws://{}{path}", self.address).parse().unwrap();
        let stream = self.connect(ListenerKind::Main);
        let request = ClientRequestBuilder::new(uri);
        let request = tungstenite::client::IntoClientRequest::into_client_request(request).unwrap();
        let mut round = ClientHandshake::start(stream, request, None).map(Some).unwrap();
        self.wait_until(|_| match round.take().unwrap().handshake() {
            Ok((socket, _)) => Some(socket),
            Err(HandshakeError::Interrupted(again)) => {
                round = Some(again);
                None
            }
            Err(HandshakeError::Failure(error)) => panic!("{error}"),
        })
    }

    pub fn socket(&mut self, peer: &str) -> &mut WebSocket<TcpStream> {
        self.clients.get_mut(peer).unwrap().socket.as_mut().unwrap()
    }

    pub fn send(&mut self, peer: &str, message: Message) {
        match self.socket(peer).send(message) {
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.wait_until(|net| net.socket(peer).flush().is_ok().then_some(()));
            }
            sent => sent.unwrap(),
        }
        self.run_until_idle();
    }

    /// Runs the loop until the server has handled everything that was sent and the clients have received the results.
    /// On loopback, bytes have arrived when the system call returns, so a server without pending events has handled
    /// everything.
    pub fn run_until_idle(&mut self) {
        let mut idle_turns = 0;
        let began = Instant::now();
        while idle_turns < 2 {
            self.server.poll_once(Some(Duration::ZERO)).unwrap();
            idle_turns = if self.server.was_idle() { idle_turns + 1 } else { 0 };
            self.receive_all();
            assert!(began.elapsed() < WAIT_TIMEOUT, "the server does not become idle");
        }
    }

    fn add_client(&mut self, peer: &str, socket: WebSocket<TcpStream>) {
        let socket = Some(socket);
        let client = Client { socket, received: VecDeque::new(), stalled: false };
        self.clients.insert(peer.to_owned(), client);
        self.run_until_idle();
    }

    /// Reads all available messages of clients that are not stalled, and answers pings.
    fn receive_all(&mut self) {
        for client in self.clients.values_mut().filter(|client| !client.stalled) {
            while let Some(socket) = &mut client.socket {
                match socket.read() {
                    Ok(Message::Text(text)) => client.received.push_back(Received::Text(text.to_string())),
                    Ok(Message::Close(frame)) => {
                        let code = frame.map_or(1005, |frame| frame.code.into());
                        client.received.push_back(Received::Closed(code));
                    }
                    Ok(_) => {}
                    Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(Error::ConnectionClosed) => client.socket = None,
                    Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                        client.received.push_back(Received::Closed(1006));
                        client.socket = None;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

impl Transport for Net {
    fn open(&mut self, peer: &str, room: &str) {
        let socket = self.websocket(room);
        self.add_client(peer, socket);
    }

    fn open_with_token(&mut self, peer: &str, room: &str, claims: &Claims) {
        let token = Secrets::parse(SECRET).unwrap().sign(claims);
        let socket = self.websocket(&format!("{room}?token={token}"));
        self.add_client(peer, socket);
    }

    fn open_at(&mut self, peer: &str, path: &str) {
        let socket = self.websocket_at(path);
        self.add_client(peer, socket);
    }

    fn status(&mut self, path: &str, is_upgrade: bool) -> Option<u16> {
        let upgrade = if is_upgrade {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        } else {
            ""
        };
        let answer =
            self.request(ListenerKind::Main, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n{upgrade}\r\n"));
        answer.split(' ').nth(1)?.parse().ok()
    }

    fn request_resource(&mut self, method: &str, path: &str, origin: Option<&str>) -> Option<HttpResponse> {
        let origin = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
        let request = format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{origin}\r\n");
        let response = self.request(ListenerKind::Main, &request);
        let (head, body) = response.split_once("\r\n\r\n")?;
        let (status_line, header_lines) = head.split_once("\r\n")?;
        let headers = header_lines.lines().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        Some(HttpResponse {
            status: status_line.split(' ').nth(1)?.parse().ok()?,
            headers: Some(headers.collect()),
            body: body.to_owned(),
        })
    }

    fn send(&mut self, peer: &str, text: &[u8], binary: bool) {
        let message = match std::str::from_utf8(text) {
            Ok(text) if !binary => Message::text(text),
            _ => Message::binary(text.to_vec()),
        };
        Net::send(self, peer, message);
    }

    fn stop_reading(&mut self, peer: &str) {
        self.clients.get_mut(peer).unwrap().stalled = true;
    }

    fn reset(&mut self, peer: &str) {
        let socket = self.clients.get_mut(peer).unwrap().socket.take().unwrap();
        SockRef::from(socket.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        let left = self.server.sessions() - 1;
        self.wait_until(|net| (net.server.sessions() == left).then_some(()));
        self.run_until_idle();
    }

    fn close(&mut self, peer: &str) {
        let client = self.clients.get_mut(peer).unwrap();
        if let Some(socket) = &mut client.socket {
            let frame = CloseFrame { code: 1000.into(), reason: "".into() };
            let _ = socket.close(Some(frame));
        }
        if client.stalled {
            client.socket = None;
        }
        let left = client.received.len();
        self.run_until_idle();
        let client = self.clients.get_mut(peer).unwrap();
        // A claimant is not read while it waits: the server only sees that TCP is closed.
        client.socket = None;
        // A transcript does not list the reply to the peer's own Close frame.
        client.received.truncate(left);
        self.run_until_idle();
    }

    fn advance_by(&mut self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(Duration::from_secs(1));
            self.server.advance(step);
            self.run_until_idle();
            left -= step;
        }
    }

    fn next_received(&mut self, peer: &str) -> Option<Received> {
        self.clients.get_mut(peer).unwrap().received.pop_front()
    }

    fn finish(mut self: Box<Self>) {
        self.clients.clear();
        self.wait_until(|net| (net.server.sessions() == 0).then_some(()));
        if holds_messages_of_departed_senders(self.server.dispatcher()) {
            self.advance_by(HOLD_TIME);
        }
        assert_eq!(remaining_state(self.server.dispatcher()), (0, 0, None));
    }
}
