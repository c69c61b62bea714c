//! A server process under attack, with a well-behaved pair that must not be disturbed.

use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::json;

use super::client::Client;
use super::process::{Running, eventually, example, run};
use super::shared_resource::{Reserved, SharedResource};

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// Memory allowance of an unloaded server: twice what a debug build uses with few peers, for memory that its allocator
/// retains.
pub const BASELINE_BYTES: usize = 8 * MIB;

/// Time after which waiting for a condition fails the test. A hundred thousand peers take minutes on a busy machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(600);

/// Descriptors that a test uses, unless it says that it needs more.
const DESCRIPTORS: usize = 3_000;

/// Descriptors of the test program that no test reserves.
const DESCRIPTORS_RESERVE: usize = 1_000;

static DESCRIPTORS_OF_THE_PROGRAM: SharedResource = SharedResource::new();

/// The ids of the well-behaved pair.
pub const PAIR: [&str; 2] = ["P", "Q"];

/// A server process and a well-behaved pair that exchanges candidates.
pub struct LoadedServer {
    pub server: Running,
    stderr: BufReader<ChildStderr>,
    pub pair: [Client; 2],
    messages_sent: usize,
    /// Open descriptors without clients.
    descriptors_empty: usize,
    /// Open descriptors with only the pair.
    pub descriptors_at_rest: usize,
    /// The attacking clients are in this process and need descriptors.
    _descriptors: Reserved,
}

impl LoadedServer {
    /// Starts a server with these flags. Its ping interval is long enough for a slow machine.
    pub fn start(flags: &str) -> LoadedServer {
        LoadedServer::start_script(&script(flags))
    }

    /// Starts a server with these flags for more clients than other tests have. Waits until there are descriptors for them.
    pub fn start_for_clients(count: usize, flags: &str) -> LoadedServer {
        LoadedServer::start_with_descriptors(count, &script(flags))
    }

    /// Starts a server with a shell script that ends in `exec "$0"`.
    pub fn start_script(script: &str) -> LoadedServer {
        LoadedServer::start_with_descriptors(DESCRIPTORS, script)
    }

    fn start_with_descriptors(count: usize, script: &str) -> LoadedServer {
        let (_, files_max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, files_max, files_max).unwrap();
        let descriptors = DESCRIPTORS_OF_THE_PROGRAM.reserve(count, files_max as usize - DESCRIPTORS_RESERVE);
        let (server, stderr) = run(script);
        let empty = server.descriptors();
        let pair = PAIR.map(|id| Client::open(server.address, "pair").register(id));
        let descriptors_at_rest = server.descriptors();
        LoadedServer {
            server,
            stderr,
            pair,
            messages_sent: 0,
            descriptors_empty: empty,
            descriptors_at_rest,
            _descriptors: descriptors,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Exchanges a candidate in each direction.
    pub fn exchange_candidates(&mut self) {
        self.messages_sent += 1;
        for (from, to) in [(0, 1), (1, 0)] {
            let id = PAIR[from];
            let target = PAIR[to];
            let message = json!({"type": "candidateAdd", "id": id, "target_id": target, "candidate": self.messages_sent});
            self.pair[from].send_json(message);
            let expected =
                json!({"type": "candidate", "candidate": self.messages_sent.to_string(), "id": id});
            assert_eq!(self.pair[to].receive_json(), expected);
        }
    }

    /// Connects this many clients while the pair exchanges candidates.
    pub fn connect_many<T>(
        &mut self,
        count: usize,
        mut member: impl FnMut(SocketAddr, usize) -> T,
    ) -> Vec<T> {
        let come = |i| {
            if i % 50 == 0 {
                self.exchange_candidates();
            }
            member(self.address(), i)
        };
        (0..count).map(come).collect()
    }

    /// Waits for a condition while the pair exchanges candidates.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Running) -> bool) {
        let began = Instant::now();
        while !condition(&self.server) {
            assert!(began.elapsed() < WAIT_TIMEOUT, "{what}");
            self.exchange_candidates();
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a metric has this value.
    pub fn wait_for_metric(&mut self, name: &str, value: usize) {
        self.wait_until(&format!("{name} {value}"), |server| server.metric(name) == value as f64);
    }

    /// Lets the pair exchange candidates for this long.
    pub fn run_for(&mut self, time: Duration) {
        let began = Instant::now();
        self.wait_until("the time has passed", |_| began.elapsed() >= time);
    }

    /// Asserts that the attackers have left nothing behind and that the peak memory is within `memory_max` bytes. Then
    /// disconnects the pair, checks again, stops the server and returns its log.
    pub fn finish(mut self, memory_max: usize) -> String {
        let at_rest = self.descriptors_at_rest;
        self.wait_until("their descriptors are closed", |server| server.descriptors() == at_rest);
        for (name, left) in [("connections", 2.0), ("peers", 2.0), ("rooms", 1.0)] {
            assert_eq!(self.server.metric(name), left, "{name}");
        }
        let (_, peak) = self.server.memory();
        println!("{} KiB of memory at most, {} allowed", peak / KIB, memory_max / KIB);
        assert!(peak <= memory_max);
        drop(self.pair);
        eventually("all descriptors are closed", || self.server.descriptors() == self.descriptors_empty);
        for name in ["connections", "peers", "rooms"] {
            assert_eq!(self.server.metric(name), 0.0, "{name}");
        }
        self.server.signal(Signal::SIGTERM);
        assert_eq!(self.server.code(), Some(0));
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        log
    }
}

fn script(flags: &str) -> String {
    format!(r#"exec "$0" --log warn --ping-interval 600 {flags}"#)
}

/// Starts the load test against this server.
pub fn start_load_generator(loaded: &LoadedServer, flags: &str) -> Child {
    let url = format!("ws://{}/ws/load", loaded.address());
    let mut command = Command::new(example("load"));
    command.args(["--url", &url]).args(flags.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}
