//! The network between clients and a server, which a test may cut, swallow or lead elsewhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// Passes on whatever is sent to its address, in a thread for each direction.
pub struct Wire {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Where new connections lead.
    server: SocketAddr,
    /// For how many milliseconds each piece is held back.
    delay: Range<u64>,
    /// After how many each new connection is cut, if at all.
    life: Option<Range<u64>>,
    seed: u64,
    connections: Vec<Connection>,
}

struct Connection {
    streams: [TcpStream; 2],
    /// Whether what is sent arrives nowhere from now on, and neither end hears that the other has closed.
    swallows: Arc<Mutex<bool>>,
}

impl Wire {
    /// To a server.
    pub fn to(server: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { server, delay: 0..1, life: None, seed: 0, connections: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        spawn(move || {
            for client in listener.incoming().map(Result::unwrap) {
                let mut state = shared.lock().unwrap();
                // Who comes while there is no server is cut.
                let Ok(server) = TcpStream::connect(state.server) else { continue };
                let swallows = Arc::new(Mutex::new(false));
                for [from, to] in [[&client, &server], [&server, &client]] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (swallows, shared) = (swallows.clone(), shared.clone());
                    spawn(move || pass(from, to, &swallows, || shared.lock().unwrap().delay()));
                }
                if let Some(life) = state.life() {
                    let streams = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                    spawn(move || {
                        sleep(life);
                        streams.iter().for_each(cut);
                    });
                }
                state.connections.push(Connection { streams: [client, server], swallows });
            }
        });
        Wire { address, state }
    }

    /// From now on new connections lead there.
    pub fn lead_to(&self, server: SocketAddr) {
        self.state.lock().unwrap().server = server;
    }

    /// From now on each piece is so late, and nothing else is wrong.
    pub fn delay(&self, ms: u64) {
        self.state.lock().unwrap().delay = ms..ms + 1;
    }

    /// From now on each new connection is cut after 0.1 to 1.4 s, and what passes is late.
    pub fn storm(&self, seed: u64) {
        let mut state = self.state.lock().unwrap();
        (state.delay, state.life, state.seed) = (0..60, Some(100..1400), seed);
        drop(state);
        self.cut();
    }

    /// The storm is over.
    pub fn calm(&self) {
        let mut state = self.state.lock().unwrap();
        (state.delay, state.life) = (0..1, None);
    }

    /// Cuts all connections that there are.
    pub fn cut(&self) {
        for connection in self.state.lock().unwrap().connections.drain(..) {
            connection.streams.iter().for_each(cut);
        }
    }

    /// Loses, without a word, whatever is sent on the connections that there are.
    pub fn swallow(&self) {
        for connection in &self.state.lock().unwrap().connections {
            *connection.swallows.lock().unwrap() = true;
        }
    }
}

impl State {
    fn delay(&mut self) -> Duration {
        Duration::from_millis(random(&mut self.seed, self.delay.clone()))
    }

    fn life(&mut self) -> Option<Duration> {
        let life = self.life.clone()?;
        Some(Duration::from_millis(random(&mut self.seed, life)))
    }
}

/// A number within a range, the same for the same seed (splitmix64).
pub fn random(seed: &mut u64, range: Range<u64>) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    range.start + (z ^ z >> 31) % (range.end - range.start)
}

fn cut(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

fn pass(mut from: TcpStream, mut to: TcpStream, swallows: &Mutex<bool>, delay: impl Fn() -> Duration) {
    let mut buffer = [0; 65_536];
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        sleep(delay());
        if *swallows.lock().unwrap() {
            if read == 0 {
                return;
            }
        } else if read == 0 || to.write_all(&buffer[..read]).is_err() {
            cut(&to);
            cut(&from);
            return;
        }
    }
}
