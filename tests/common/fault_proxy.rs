//! A TCP proxy between clients and a server that injects faults.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// Forwards every connection, with one thread for each direction.
pub struct FaultProxy {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The server of new connections.
    server: SocketAddr,
    /// Range of the delay of each chunk, in milliseconds.
    delay: Range<u64>,
    /// Range of the time after which a new connection is cut, in milliseconds. `None`: never.
    lifetime: Option<Range<u64>>,
    seed: u64,
    connections: Vec<Connection>,
    /// Whether the proxy has ended, and accepts no further connections.
    is_dropped: bool,
}

struct Connection {
    streams: [TcpStream; 2],
    /// Whether bytes are discarded and closes are not forwarded.
    is_black_hole: Arc<Mutex<bool>>,
}

impl FaultProxy {
    pub fn new(server: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            server,
            delay: 0..1,
            lifetime: None,
            seed: 0,
            connections: Vec::new(),
            is_dropped: false,
        };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        spawn(move || {
            for client in listener.incoming().map(Result::unwrap) {
                let mut state = shared.lock().unwrap();
                if state.is_dropped {
                    return;
                }
                // Connections are closed while the server is down.
                let Ok(server) = TcpStream::connect(state.server) else { continue };
                let is_black_hole = Arc::new(Mutex::new(false));
                for [from, to] in [[&client, &server], [&server, &client]] {
                    let from = from.try_clone().unwrap();
                    let to = to.try_clone().unwrap();
                    let is_black_hole = is_black_hole.clone();
                    let shared = shared.clone();
                    spawn(move || relay(from, to, &is_black_hole, || shared.lock().unwrap().delay()));
                }
                if let Some(lifetime) = state.lifetime() {
                    let streams = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                    spawn(move || {
                        sleep(lifetime);
                        streams.iter().for_each(shut_down);
                    });
                }
                state.connections.push(Connection { streams: [client, server], is_black_hole });
            }
        });
        FaultProxy { address, state }
    }

    /// Forwards new connections to another server.
    pub fn redirect_to(&self, server: SocketAddr) {
        self.state.lock().unwrap().server = server;
    }

    /// Delays each chunk by this many milliseconds.
    pub fn set_delay(&self, ms: u64) {
        self.state.lock().unwrap().delay = ms..ms + 1;
    }

    /// Cuts each new connection after 0.1 to 1.4 s and delays its chunks, until [`FaultProxy::stop_faults`].
    pub fn start_faults(&self, seed: u64) {
        let mut state = self.state.lock().unwrap();
        state.delay = 0..60;
        state.lifetime = Some(100..1400);
        state.seed = seed;
        drop(state);
        self.cut_connections();
    }

    pub fn stop_faults(&self) {
        let mut state = self.state.lock().unwrap();
        state.delay = 0..1;
        state.lifetime = None;
    }

    /// Closes all open connections.
    pub fn cut_connections(&self) {
        for connection in self.state.lock().unwrap().connections.drain(..) {
            connection.streams.iter().for_each(shut_down);
        }
    }

    /// Silently discards everything that is sent on the open connections.
    pub fn black_hole(&self) {
        for connection in &self.state.lock().unwrap().connections {
            *connection.is_black_hole.lock().unwrap() = true;
        }
    }
}

/// Ends the proxy: a test of many storms would run out of file descriptors otherwise.
impl Drop for FaultProxy {
    fn drop(&mut self) {
        let Ok(mut state) = self.state.lock() else { return };
        state.is_dropped = true;
        for connection in state.connections.drain(..) {
            connection.streams.iter().for_each(shut_down);
        }
        drop(state);
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn delay(&mut self) -> Duration {
        Duration::from_millis(random(&mut self.seed, self.delay.clone()))
    }

    fn lifetime(&mut self) -> Option<Duration> {
        let lifetime = self.lifetime.clone()?;
        Some(Duration::from_millis(random(&mut self.seed, lifetime)))
    }
}

/// Returns a pseudorandom number in a range (splitmix64).
pub fn random(seed: &mut u64, range: Range<u64>) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    range.start + (z ^ z >> 31) % (range.end - range.start)
}

fn shut_down(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

fn relay(mut from: TcpStream, mut to: TcpStream, is_black_hole: &Mutex<bool>, delay: impl Fn() -> Duration) {
    let mut buffer = [0; 65_536];
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        sleep(delay());
        if *is_black_hole.lock().unwrap() {
            if read == 0 {
                return;
            }
        } else if read == 0 || to.write_all(&buffer[..read]).is_err() {
            shut_down(&to);
            shut_down(&from);
            return;
        }
    }
}
