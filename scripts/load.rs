//! A load generator for signaling servers that speak the article's protocol: noroshi or any other.
//!
//! One thread over mio, with framing of its own: frames are masked with the key 0, which leaves the payload as it
//! is, and replies are searched instead of parsed. So it costs less than the server it measures. It uses only
//! what the article's program knows too, and rooms in `call` unless told not to.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

const USAGE: &str = "\
load: how fast is a signaling server?

usage: load [flags]

  --url ws://HOST:PORT/ws   the server [default: starts noroshi on a free port, without a rate limit]
  --mode MODE               relay, call, connect, idle or churn [default: relay]
  --pairs N                 pairs that relay, or calls or connections at a time [default: 100]
  --idle N                  idle connections, in mode idle or beside the others [default: 0; 10000 in mode idle]
  --room-size N             of those in one room; 0 = all of them [default: 2]
  --joined                  they have joined the mesh of their room
  --in-flight W             candidates on their way in each pair [default: 1]
  --payload WHAT            candidate (200 bytes), sdp (2500), or a number of bytes [default: candidate]
  --seconds S               how long to measure [default: 5]
  --one-room                calls one at a time in /ws, for servers without rooms
  --pid PID                 the server's process on this machine, for its CPU time and memory
  --versus URL2             give another server the same work in turn, and print ratios
  --pid2 PID2               its process
  --json                    print one JSON object
";

/// The server has this long to answer before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// With `--versus` the servers take turns of this length.
const SLICE: Duration = Duration::from_millis(500);
/// A source address has about 28,000 ports (net.ipv4.ip_local_port_range), some of them in TIME_WAIT.
const CONNECTIONS_PER_SOURCE: usize = 20_000;

fn main() -> ExitCode {
    let flags = match Flags::parse() {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("load: {error}; see --help");
            return ExitCode::from(2);
        }
    };
    match run(&flags) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Flags {
    url: Option<String>,
    mode: Kind,
    pairs: usize,
    idle: usize,
    room_size: usize,
    joined: bool,
    in_flight: usize,
    payload: usize,
    seconds: f64,
    one_room: bool,
    pid: Option<u32>,
    versus: Option<String>,
    pid2: Option<u32>,
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Relay,
    Call,
    Connect,
    Idle,
    Churn,
}

impl Kind {
    const ALL: [(&'static str, &'static str, Kind); 5] = [
        ("relay", "candidates", Kind::Relay),
        ("call", "calls", Kind::Call),
        ("connect", "handshakes", Kind::Connect),
        ("idle", "connections", Kind::Idle),
        ("churn", "cycles", Kind::Churn),
    ];

    fn names(self) -> (&'static str, &'static str) {
        let (name, unit, _) =
            Self::ALL.into_iter().find(|(_, _, kind)| *kind == self).expect("all are listed");
        (name, unit)
    }
}

impl Flags {
    fn parse() -> Result<Option<Flags>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut flags = Flags {
            url: None,
            mode: Kind::Relay,
            pairs: 100,
            idle: 0,
            room_size: 2,
            joined: false,
            in_flight: 1,
            payload: 200,
            seconds: 5.0,
            one_room: false,
            pid: None,
            versus: None,
            pid2: None,
            json: false,
        };
        let positive = |text: &str| text.parse().ok().filter(|n| *n > 0).ok_or("not a positive number");
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("url") => flags.url = Some(parser.value()?.string()?),
                Long("mode") => {
                    flags.mode = parser.value()?.parse_with(|text| {
                        let found = Kind::ALL.into_iter().find(|(name, _, _)| *name == text);
                        found.map(|(_, _, kind)| kind).ok_or("not relay, call, connect, idle or churn")
                    })?;
                }
                Long("pairs") => flags.pairs = parser.value()?.parse_with(positive)?,
                Long("idle") => flags.idle = parser.value()?.parse()?,
                Long("room-size") => flags.room_size = parser.value()?.parse()?,
                Long("joined") => flags.joined = true,
                Long("in-flight") => flags.in_flight = parser.value()?.parse_with(positive)?,
                Long("payload") => {
                    flags.payload = parser.value()?.parse_with(|text| match text {
                        "candidate" => Ok(200),
                        "sdp" => Ok(2500),
                        bytes => positive(bytes),
                    })?;
                }
                Long("seconds") => {
                    let seconds =
                        |text: &str| text.parse().ok().filter(|s| *s > 0.0 && *s < 1e6).ok_or("not a time");
                    flags.seconds = parser.value()?.parse_with(seconds)?;
                }
                Long("one-room") => flags.one_room = true,
                Long("pid") => flags.pid = Some(parser.value()?.parse()?),
                Long("versus") => flags.versus = Some(parser.value()?.string()?),
                Long("pid2") => flags.pid2 = Some(parser.value()?.parse()?),
                Long("json") => flags.json = true,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        if flags.mode == Kind::Idle && flags.idle == 0 {
            flags.idle = 10_000;
        }
        if flags.pid2.is_some() && flags.versus.is_none() {
            return Err("--pid2 goes with --versus".into());
        }
        Ok(Some(flags))
    }
}

fn run(flags: &Flags) -> io::Result<bool> {
    let mut servers = vec![Target::new(flags.url.as_deref(), flags.pid)?];
    if let Some(url) = &flags.versus {
        servers.push(Target::new(Some(url), flags.pid2)?);
    }
    let mut tests = Vec::new();
    for server in servers {
        tests.push(Test::new(server, flags)?);
    }
    let progress = io::stderr().is_terminal();
    let end = Duration::from_secs_f64(flags.seconds);
    if flags.mode != Kind::Idle {
        let slice = if tests.len() == 1 { end / 10 } else { SLICE.min(end) };
        while tests[0].active < end {
            for test in &mut tests {
                // A single server is not interrupted.
                test.slice(slice, flags.versus.is_some())?;
            }
            if progress {
                let done = tests[0].active.as_secs_f64().min(flags.seconds);
                eprint!(
                    "\r{done:.1} of {:.1} s, {} {} ",
                    flags.seconds,
                    tests[0].mode.units(),
                    flags.mode.names().1
                );
            }
        }
        for test in tests.iter_mut().filter(|test| test.running) {
            test.slice(Duration::ZERO, true)?;
        }
        if progress {
            eprint!("\r\x1b[K");
        }
    }
    let reports = tests.into_iter().map(|test| test.finish(flags)).collect::<io::Result<Vec<_>>>()?;
    let fine = reports.iter().all(Report::is_fine);
    if flags.json {
        println!("{}", json(&reports, flags));
    } else {
        table(&reports, flags);
    }
    Ok(fine)
}

// ---- The server ----

struct Target {
    address: SocketAddr,
    host: String,
    path: String,
    pid: Option<u32>,
    child: Option<Child>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Target {
    fn new(url: Option<&str>, pid: Option<u32>) -> io::Result<Target> {
        match url {
            Some(url) => Target::at(url, pid),
            None => Target::start(),
        }
    }

    fn at(url: &str, pid: Option<u32>) -> io::Result<Target> {
        let wrong = || io::Error::new(ErrorKind::InvalidInput, format!("{url} is not ws://HOST:PORT/PATH"));
        let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
        let named = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let address = named.to_socket_addrs()?.next().ok_or_else(wrong)?;
        Ok(Target { address, host: host.to_owned(), path: format!("/{path}"), pid, child: None })
    }

    /// Starts the server that was built beside this program, on another core where there is one.
    fn start() -> io::Result<Target> {
        let binary = std::env::current_exe()?
            .parent()
            .and_then(|dir| dir.parent())
            .expect("examples/")
            .join("noroshi");
        if let Some(cargo) = std::env::var_os("CARGO") {
            // `cargo run --example` does not build it.
            let release = if cfg!(debug_assertions) { &[][..] } else { &["--release"] };
            Command::new(cargo).args(["build", "--quiet", "--bin", "noroshi"]).args(release).status()?;
        }
        let cores = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let mut free = (0..CpuSet::count()).filter(|core| cores.is_set(*core).unwrap_or(false));
        let (ours, theirs) = (free.next(), free.next());
        // What is started inherits the core.
        pin(theirs);
        let child = Command::new(&binary)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--max-rate",
                "0",
                "--max-connections",
                "100000",
                "--log",
                "error",
            ])
            .stderr(Stdio::piped())
            .spawn();
        if theirs.is_some() {
            pin(ours);
        }
        let mut child = child.map_err(|error| {
            io::Error::new(error.kind(), format!("{} does not start: {error}", binary.display()))
        })?;
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let url = lines.find_map(|line| line.ok()?.strip_prefix("listening on ").map(str::to_owned));
        let url = url.ok_or_else(|| io::Error::other("the server does not say where it listens"))?;
        let mut target = Target::at(&url, Some(child.id()))?;
        target.child = Some(child);
        Ok(target)
    }

    /// CPU time of all its threads.
    fn cpu(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid?)).ok()?;
        let times = tasks.filter_map(|task| {
            let schedstat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            schedstat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Some(Duration::from_nanos(times.sum()))
    }

    /// Resident memory, in bytes.
    fn rss(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }
}

fn pin(core: Option<usize>) {
    if let Some(core) = core {
        let mut set = CpuSet::new();
        // Where this is not allowed, the figures are noisier.
        let _ = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }
}

// ---- Connections ----

struct Client {
    stream: TcpStream,
    /// Which of the mode's connections this is.
    name: usize,
    open: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    dirty: bool,
}

/// What happens on a connection. Names are the mode's.
enum Happened<'a> {
    Opened,
    Text(&'a [u8]),
    Pong,
    Closed,
}

struct Net {
    poll: Poll,
    events: Events,
    address: SocketAddr,
    host: String,
    clients: Slab<Client>,
    dirty: Vec<usize>,
    opened: usize,
    scratch: Vec<u8>,
}

impl Net {
    fn new(target: &Target) -> io::Result<Net> {
        Ok(Net {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            address: target.address,
            host: target.host.clone(),
            clients: Slab::new(),
            dirty: Vec::new(),
            opened: 0,
            scratch: vec![0; 256 * 1024],
        })
    }

    /// Begins a connection, which will be heard of under this name.
    fn open(&mut self, name: usize, path: &str) -> io::Result<usize> {
        let socket =
            Socket::new(Domain::for_address(self.address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if let IpAddr::V4(ip) = self.address.ip()
            && ip.is_loopback()
        {
            let source = 1 + (self.opened / CONNECTIONS_PER_SOURCE % 250) as u8;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, source), 0)).into())?;
        }
        self.opened += 1;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let slot = self.clients.vacant_key();
        self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.host
        );
        // It goes out with the first event, which says that TCP is there.
        let outbox = request.into_bytes();
        self.clients.insert(Client { stream, name, open: false, inbox: Vec::new(), outbox, dirty: false });
        Ok(slot)
    }

    fn send(&mut self, slot: usize, opcode: u8, parts: &[&[u8]]) {
        let client = &mut self.clients[slot];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        client.outbox.push(0x80 | opcode);
        match length {
            0..=125 => client.outbox.push(0x80 | length as u8),
            126..=0xffff => {
                client.outbox.push(0x80 | 126);
                client.outbox.extend((length as u16).to_be_bytes());
            }
            _ => {
                client.outbox.push(0x80 | 127);
                client.outbox.extend((length as u64).to_be_bytes());
            }
        }
        client.outbox.extend([0; 4]);
        for part in parts {
            client.outbox.extend_from_slice(part);
        }
        if !std::mem::replace(&mut client.dirty, true) {
            self.dirty.push(slot);
        }
    }

    fn text(&mut self, slot: usize, text: &str) {
        self.send(slot, 1, &[text.as_bytes()]);
    }

    /// Waits at most this long, and lets the mode know what happened.
    fn turn(&mut self, mode: &mut dyn Mode, longest: Duration) -> io::Result<()> {
        self.flush()?;
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(longest)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => events.clear(),
            polled => polled?,
        }
        for event in &events {
            let Token(slot) = event.token();
            if event.is_writable() && self.clients.contains(slot) && !self.clients[slot].outbox.is_empty() {
                self.write(slot)?;
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.read(slot, mode)?;
            }
        }
        self.events = events;
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        for slot in std::mem::take(&mut self.dirty) {
            if self.clients.get(slot).is_some_and(|client| client.dirty) {
                self.clients[slot].dirty = false;
                self.write(slot)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, slot: usize) -> io::Result<()> {
        let client = &mut self.clients[slot];
        let mut sent = 0;
        while sent < client.outbox.len() {
            match client.stream.write(&client.outbox[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The end is seen by the next read.
                Err(error) if is_end(&error) => break,
                Err(error) => return Err(error),
            }
        }
        client.outbox.drain(..sent);
        Ok(())
    }

    fn read(&mut self, slot: usize, mode: &mut dyn Mode) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(slot) else { return Ok(()) };
        let (name, mut ended) = (client.name, false);
        let mut inbox = std::mem::take(&mut client.inbox);
        loop {
            match client.stream.read(&mut self.scratch) {
                Ok(0) => ended = true,
                Ok(n) => {
                    inbox.extend_from_slice(&self.scratch[..n]);
                    if n == self.scratch.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if is_end(&error) => ended = true,
                Err(error) => return Err(error),
            }
            break;
        }
        let mut at = 0;
        if !self.clients[slot].open
            && let Some(end) = inbox.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let status =
                String::from_utf8_lossy(&inbox[..end.min(40)]).lines().next().unwrap_or("").to_owned();
            if !status.contains(" 101 ") {
                return Err(io::Error::other(format!("the server answers {status:?} instead of 101")));
            }
            at = end + 4;
            self.clients[slot].open = true;
            mode.happened(self, slot, name, Happened::Opened)?;
        }
        while self.clients.get(slot).is_some_and(|client| client.open) {
            let Some((opcode, start, end)) = frame(&inbox[at..]) else { break };
            let payload = &inbox[at + start..at + end];
            at += end;
            match opcode {
                1 => mode.happened(self, slot, name, Happened::Text(payload))?,
                8 => {
                    self.send(slot, 8, &[payload]);
                    self.flush()?;
                    ended = true;
                    break;
                }
                9 => self.send(slot, 10, &[payload]),
                10 => mode.happened(self, slot, name, Happened::Pong)?,
                _ => {}
            }
        }
        if ended {
            self.clients.remove(slot);
            mode.happened(self, slot, name, Happened::Closed)?;
        } else {
            inbox.drain(..at);
            self.clients[slot].inbox = inbox;
        }
        Ok(())
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// The opcode of the frame that these bytes begin with, and where its payload begins and ends.
fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (start, length) = match bytes.get(1)? & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        n => (2, usize::from(n)),
    };
    (bytes.len() >= start + length).then_some((bytes[0] & 0xf, start, start + length))
}

fn gone() -> io::Error {
    io::Error::other("the server went away")
}

// ---- Modes ----

/// Something to do, over and over.
trait Mode {
    /// Begins, or goes on.
    fn resume(&mut self, net: &mut Net) -> io::Result<()>;
    /// Begins nothing new from now on.
    fn pause(&mut self);
    /// Whether all that was begun is done.
    fn is_done(&self) -> bool;
    /// What was done so far.
    fn units(&self) -> u64;
    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()>;
    fn tally(&mut self) -> &mut Tally;
    /// How many connections are there before it begins.
    fn registered(&self) -> usize {
        0
    }
}

struct Tally {
    /// Times in nanoseconds.
    times: Histogram<u64>,
    lost: u64,
    doubled: u64,
    disordered: u64,
    /// Errors that the server answered, by its words.
    errors: u64,
    rate_limited: u64,
}

impl Tally {
    fn new() -> Tally {
        let times = Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are fine");
        Tally { times, lost: 0, doubled: 0, disordered: 0, errors: 0, rate_limited: 0 }
    }

    fn took(&mut self, time: Duration) {
        self.times.saturating_record(time.as_nanos() as u64);
    }

    /// Whether this is an error, which is then counted.
    fn error(&mut self, text: &[u8]) -> bool {
        let is_error = contains(text, b"\"type\":\"error\"");
        if is_error && contains(text, b"rate_limited") {
            self.rate_limited += 1;
        } else {
            self.errors += u64::from(is_error);
        }
        is_error
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Registers a connection: a candidate for oneself is answered by every server, in one way or another, and
/// leaves nothing behind.
fn register(net: &mut Net, slot: usize, id: &str) {
    net.text(slot, &format!(r#"{{"type":"candidateAdd","id":"{id}","target_id":"{id}","candidate":0}}"#));
}

/// Connections that are registered and then do nothing.
struct Idle {
    path: String,
    /// How many are in one room; 0: all of them.
    room_size: usize,
    /// Whether they have joined its mesh.
    joined: bool,
    ready: usize,
    of: usize,
    tally: Tally,
}

impl Mode for Idle {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        // Few at a time: nobody's backlog is to overflow.
        while net.clients.len() < self.of && net.clients.len() < self.ready + 50 {
            let number = net.clients.len();
            match number.checked_div(self.room_size) {
                Some(room) => net.open(number, &format!("{}/idle-{room}", self.path))?,
                None => net.open(number, &self.path)?,
            };
        }
        Ok(())
    }

    fn pause(&mut self) {}

    fn is_done(&self) -> bool {
        self.ready == self.of
    }

    fn units(&self) -> u64 {
        self.ready as u64
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        match what {
            Happened::Opened if self.joined => {
                net.text(slot, &format!(r#"{{"type":"join","id":"idle-{name:08}"}}"#));
            }
            Happened::Opened => register(net, slot, &format!("idle-{name:08}")),
            // What others do, who join, is nothing new.
            Happened::Text(text) if text.starts_with(br#"{"type":"peerJoined""#) => {}
            Happened::Text(_) => {
                self.ready += 1;
                self.resume(net)?;
            }
            Happened::Pong => {}
            Happened::Closed => return Err(gone()),
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}

/// Pairs, in each of which one sends numbered candidates to the other.
struct Relay {
    pairs: Vec<Pair>,
    in_flight: usize,
    running: bool,
    registered: usize,
    received: u64,
    tally: Tally,
}

#[derive(Default)]
struct Pair {
    sender: usize,
    /// The message, before and after the number.
    before: Vec<u8>,
    after: Vec<u8>,
    sent: u64,
    expected: u64,
    missing: BTreeSet<u64>,
    /// When those from `expected` on were sent.
    sent_at: VecDeque<Instant>,
}

impl Relay {
    fn new(flags: &Flags) -> Relay {
        let pairs = (0..flags.pairs).map(|i| {
            let before = format!(
                r#"{{"type":"candidateAdd","id":"relay-{i}-a","target_id":"relay-{i}-b","candidate":{{"n":"#
            );
            // The number has up to eight digits.
            let rest = flags.payload.saturating_sub(r#"{"n":00000000,"candidate":""}"#.len());
            let after = format!(r#","candidate":"{}"}}}}"#, payload(rest));
            Pair { before: before.into_bytes(), after: after.into_bytes(), ..Pair::default() }
        });
        Relay {
            pairs: pairs.collect(),
            in_flight: flags.in_flight,
            running: false,
            registered: 0,
            received: 0,
            tally: Tally::new(),
        }
    }

    fn send(&mut self, net: &mut Net, pair: usize) {
        let pair = &mut self.pairs[pair];
        let number = pair.sent.to_string();
        net.send(pair.sender, 1, &[&pair.before, number.as_bytes(), &pair.after]);
        pair.sent += 1;
        pair.sent_at.push_back(Instant::now());
    }

    fn received(&mut self, net: &mut Net, index: usize, number: u64) {
        let pair = &mut self.pairs[index];
        if number >= pair.sent || (number < pair.expected && !pair.missing.remove(&number)) {
            self.tally.doubled += 1;
            return;
        }
        if number < pair.expected {
            self.tally.disordered += 1;
        } else {
            let skipped = number - pair.expected;
            pair.missing.extend(pair.expected..number);
            pair.expected = number + 1;
            let sent_at = pair.sent_at.drain(..=skipped as usize).next_back().expect("it was sent");
            self.tally.took(sent_at.elapsed());
        }
        self.received += 1;
        if self.running {
            self.send(net, index);
        }
    }

    fn count_lost(&mut self) {
        self.tally.lost =
            self.pairs.iter().map(|pair| pair.sent - pair.expected + pair.missing.len() as u64).sum();
    }
}

impl Mode for Relay {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        if self.registered == 2 * self.pairs.len() {
            self.running = true;
            for pair in 0..self.pairs.len() {
                // What was lost is not sent again.
                for _ in 0..self.in_flight {
                    self.send(net, pair);
                }
            }
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.running = false;
    }

    fn is_done(&self) -> bool {
        self.registered == 2 * self.pairs.len()
            && self.pairs.iter().all(|pair| pair.sent == pair.expected && pair.missing.is_empty())
    }

    fn units(&self) -> u64 {
        self.received
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        let (pair, is_sender) = (name / 2, name.is_multiple_of(2));
        match what {
            Happened::Opened => {
                if is_sender {
                    self.pairs[pair].sender = slot;
                }
                register(net, slot, &format!("relay-{pair}-{}", if is_sender { 'a' } else { 'b' }));
            }
            Happened::Text(_) if self.registered < 2 * self.pairs.len() => self.registered += 1,
            Happened::Text(text) => match number(text) {
                Some(number) => self.received(net, pair, number),
                None => {
                    self.tally.error(text);
                }
            },
            Happened::Pong => {}
            Happened::Closed => return Err(gone()),
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        self.count_lost();
        &mut self.tally
    }

    fn registered(&self) -> usize {
        self.registered
    }
}

/// What a message carries: a candidate is one line, an SDP has many, whose ends are escape sequences in JSON.
fn payload(bytes: usize) -> String {
    const LINE: &str = r"a=rtpmap:111 opus/48000/2\r\n";
    let lines = if bytes < 1_000 { 0 } else { bytes / LINE.len() };
    LINE.repeat(lines) + &"x".repeat(bytes - lines * LINE.len())
}

/// The number in a relayed candidate: inside a string from a signaling server, as it was from a bare relay.
fn number(text: &[u8]) -> Option<u64> {
    let after =
        |key: &[u8]| text.windows(key.len()).position(|window| window == key).map(|at| at + key.len());
    let at = after(br#"\"n\":"#).or_else(|| after(br#""n":"#))?;
    let digits = text[at..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.map(|digit| u64::from(digit - b'0')).reduce(|number, digit| 10 * number + digit)
}

/// Handshakes, and in `churn` registrations, each followed by a goodbye.
struct Connect {
    path: String,
    registers: bool,
    at_once: usize,
    running: bool,
    open: usize,
    began: Vec<Instant>,
    done: u64,
    tally: Tally,
}

impl Connect {
    fn begin(&mut self, net: &mut Net, name: usize) -> io::Result<()> {
        self.open += 1;
        self.began[name] = Instant::now();
        net.open(name, &self.path).map(|_| ())
    }

    fn reached(&mut self, net: &mut Net, slot: usize, name: usize) {
        self.tally.took(self.began[name].elapsed());
        self.done += 1;
        net.send(slot, 8, &[&1000u16.to_be_bytes()]);
    }
}

impl Mode for Connect {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        self.running = true;
        (0..self.at_once).try_for_each(|name| self.begin(net, name))
    }

    fn pause(&mut self) {
        self.running = false;
    }

    fn is_done(&self) -> bool {
        self.open == 0
    }

    fn units(&self) -> u64 {
        self.done
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        match what {
            Happened::Opened if self.registers => register(net, slot, &format!("churn-{name}")),
            Happened::Opened | Happened::Text(_) => self.reached(net, slot, name),
            Happened::Pong => {}
            Happened::Closed => {
                self.open -= 1;
                if self.running {
                    self.begin(net, name)?;
                }
            }
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        self.tally.lost = self.open as u64;
        &mut self.tally
    }
}

/// Whole calls: two peers connect, offer, answer, say eight candidates each, and leave.
struct Calls {
    path: String,
    rooms: bool,
    calls: Vec<Call>,
    running: bool,
    rooms_used: u64,
    done: u64,
    sdp: String,
    tally: Tally,
}

#[derive(Default)]
struct Call {
    path: String,
    began: Option<Instant>,
    open: usize,
    answered: bool,
    candidates: [usize; 2],
    slots: [usize; 2],
}

const CANDIDATES: usize = 8;

impl Calls {
    fn begin(&mut self, net: &mut Net, call: usize) -> io::Result<()> {
        self.rooms_used += 1;
        let path =
            if self.rooms { format!("{}/call-{}", self.path, self.rooms_used) } else { self.path.clone() };
        let slot = net.open(2 * call, &path)?;
        self.calls[call] =
            Call { path, began: Some(Instant::now()), open: 1, slots: [slot, 0], ..Call::default() };
        Ok(())
    }

    fn say_offer(net: &mut Net, slot: usize, id: &str, sdp: &str) {
        net.text(slot, &format!(r#"{{"type":"offer","id":"{id}","sdp":{sdp}}}"#));
        Self::say_candidates(net, slot, id, "");
    }

    fn say_candidates(net: &mut Net, slot: usize, id: &str, target: &str) {
        for i in 0..CANDIDATES {
            let candidate = format!(
                r#"{{"candidate":"candidate:{i} 1 udp 2122260223 192.0.2.{i} 5000{i} typ host generation 0 ufrag EsAw","sdpMid":"0","sdpMLineIndex":0}}"#
            );
            let text = format!(
                r#"{{"type":"candidateAdd","id":"{id}","target_id":"{target}","candidate":{candidate}}}"#
            );
            net.text(slot, &text);
        }
    }
}

impl Mode for Calls {
    fn resume(&mut self, net: &mut Net) -> io::Result<()> {
        self.running = true;
        (0..self.calls.len()).try_for_each(|call| self.begin(net, call))
    }

    fn pause(&mut self) {
        self.running = false;
    }

    fn is_done(&self) -> bool {
        self.calls.iter().all(|call| call.began.is_none())
    }

    fn units(&self) -> u64 {
        self.done
    }

    fn happened(&mut self, net: &mut Net, slot: usize, name: usize, what: Happened) -> io::Result<()> {
        let (index, side) = (name / 2, name % 2);
        let (a, b) = (format!("call-{index}-a"), format!("call-{index}-b"));
        let id = if side == 0 { &a } else { &b };
        let sdp = &self.sdp;
        let call = &mut self.calls[index];
        match what {
            Happened::Opened => net.text(slot, &format!(r#"{{"type":"connect","id":"{id}"}}"#)),
            Happened::Text(text) if contains(text, br#""type":"answer""#) => call.answered = true,
            Happened::Text(text) if contains(text, br#""type":"candidate"#) => {
                call.candidates[side] += text.windows(10).filter(|window| *window == b"candidate:").count();
            }
            Happened::Text(text) if contains(text, br#""type":"connect""#) => {
                // A bare relay asks nobody: it has said the first message back, and passes on what follows.
                if side == 0 {
                    call.open += 1;
                    call.slots[1] = net.open(2 * index + 1, &call.path)?;
                } else {
                    Self::say_offer(net, call.slots[0], &a, sdp);
                }
            }
            Happened::Text(text) if contains(text, br#""type":"offer""#) => {
                if side == 1 {
                    net.text(
                        slot,
                        &format!(r#"{{"type":"answer","id":"{b}","target_id":"{a}","sdp":{sdp}}}"#),
                    );
                    Self::say_candidates(net, slot, &b, &a);
                } else {
                    Self::say_offer(net, slot, &a, sdp);
                    // The pong says that the offer stands.
                    net.send(slot, 9, &[]);
                }
            }
            Happened::Text(text) => {
                // `peerLeft` may still come while the two leave.
                self.tally.error(text);
            }
            Happened::Pong => {
                call.open += 1;
                call.slots[1] = net.open(2 * index + 1, &call.path)?;
            }
            Happened::Closed => {
                call.open -= 1;
                if call.open == 0 {
                    call.began = None;
                    if self.running {
                        self.begin(net, index)?;
                    }
                }
                return Ok(());
            }
        }
        let call = &mut self.calls[index];
        if call.answered && call.candidates == [CANDIDATES; 2] {
            // Once and for all.
            call.candidates = [CANDIDATES + 1; 2];
            self.tally.took(call.began.expect("it has begun").elapsed());
            self.done += 1;
            for slot in self.calls[index].slots {
                net.send(slot, 8, &[&1000u16.to_be_bytes()]);
            }
        }
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        self.tally.lost = self.calls.iter().filter(|call| call.began.is_some()).count() as u64;
        &mut self.tally
    }
}

// ---- A test of one server ----

struct Test {
    target: Target,
    net: Net,
    mode: Box<dyn Mode>,
    /// The idle ones, which stay connected.
    idle: (Net, Idle),
    active: Duration,
    cpu: Option<Duration>,
    rss_before: Option<u64>,
    running: bool,
}

impl Test {
    fn new(target: Target, flags: &Flags) -> io::Result<Test> {
        let (net, mut idle_net) = (Net::new(&target)?, Net::new(&target)?);
        let path = target.path.clone();
        let mode: Box<dyn Mode> = match flags.mode {
            Kind::Relay | Kind::Idle => Box::new(Relay::new(flags)),
            Kind::Call => Box::new(Calls {
                path: path.clone(),
                rooms: !flags.one_room,
                calls: (0..if flags.one_room { 1 } else { flags.pairs }).map(|_| Call::default()).collect(),
                running: false,
                rooms_used: 0,
                done: 0,
                sdp: format!(r#"{{"type":"offer","sdp":"{}"}}"#, payload(2_500)),
                tally: Tally::new(),
            }),
            Kind::Connect | Kind::Churn => Box::new(Connect {
                path: path.clone(),
                registers: flags.mode == Kind::Churn,
                at_once: flags.pairs,
                running: false,
                open: 0,
                began: vec![Instant::now(); flags.pairs],
                done: 0,
                tally: Tally::new(),
            }),
        };
        let rss_before = target.rss();
        let Flags { room_size, joined, idle: of, .. } = *flags;
        let mut idle = Idle { path, room_size, joined, ready: 0, of, tally: Tally::new() };
        idle.resume(&mut idle_net)?;
        until(&mut idle_net, &mut idle)?;
        all_registered(idle.ready, idle.of)?;
        let mut test = Test {
            target,
            net,
            mode,
            idle: (idle_net, idle),
            active: Duration::ZERO,
            cpu: None,
            rss_before,
            running: false,
        };
        if flags.mode == Kind::Relay {
            for name in 0..2 * flags.pairs {
                test.net.open(name, &test.target.path)?;
            }
            until(&mut test.net, test.mode.as_mut())?;
            all_registered(test.mode.registered(), 2 * flags.pairs)?;
        }
        Ok(test)
    }

    /// Works for so long, and if `stops`, until what was begun is done.
    fn slice(&mut self, length: Duration, stops: bool) -> io::Result<()> {
        let (began, cpu) = (Instant::now(), self.target.cpu());
        if !std::mem::replace(&mut self.running, true) {
            self.mode.resume(&mut self.net)?;
        }
        while began.elapsed() < length {
            self.net.turn(self.mode.as_mut(), length.saturating_sub(began.elapsed()))?;
        }
        if stops {
            self.running = false;
            self.mode.pause();
            until(&mut self.net, self.mode.as_mut())?;
        }
        self.active += began.elapsed();
        if let (Some(before), Some(after)) = (cpu, self.target.cpu()) {
            *self.cpu.get_or_insert_default() += after - before;
        }
        // The idle answer pings.
        self.idle.0.turn(&mut self.idle.1, Duration::ZERO)
    }

    fn finish(mut self, flags: &Flags) -> io::Result<Report> {
        let idle = flags.mode == Kind::Idle;
        if idle {
            // What the last of them caused is over then.
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                self.idle.0.turn(&mut self.idle.1, Duration::from_millis(50))?;
            }
        }
        let tally = std::mem::replace(self.mode.tally(), Tally::new());
        Ok(Report {
            units: if idle { self.idle.1.ready as u64 } else { self.mode.units() },
            seconds: self.active.as_secs_f64(),
            cpu: self.cpu.map(|cpu| cpu.as_secs_f64()),
            rss: self.rss_before.zip(self.target.rss()),
            tally,
        })
    }
}

fn all_registered(ready: usize, of: usize) -> io::Result<()> {
    if ready == of {
        Ok(())
    } else {
        Err(io::Error::other(format!("{ready} of {of} connections registered")))
    }
}

/// Turns until the mode is done, or nothing has happened for too long: what is missing then is lost.
fn until(net: &mut Net, mode: &mut dyn Mode) -> io::Result<()> {
    let (mut since, mut units) = (Instant::now(), mode.units());
    while !mode.is_done() && since.elapsed() < PATIENCE {
        net.turn(mode, Duration::from_millis(100))?;
        if mode.units() != units {
            (since, units) = (Instant::now(), mode.units());
        }
    }
    Ok(())
}

// ---- Reports ----

struct Report {
    units: u64,
    seconds: f64,
    cpu: Option<f64>,
    /// Before and after, in bytes.
    rss: Option<(u64, u64)>,
    tally: Tally,
}

impl Report {
    fn is_fine(&self) -> bool {
        let Tally { lost, doubled, disordered, errors, rate_limited, .. } = &self.tally;
        lost + doubled + disordered + errors + rate_limited == 0 && self.units > 0
    }

    fn per_second(&self) -> f64 {
        self.units as f64 / self.seconds
    }

    /// CPU time of the server for one unit, in microseconds.
    fn cpu_per_unit(&self) -> Option<f64> {
        self.cpu.map(|cpu| cpu * 1e6 / self.units as f64)
    }

    fn rows(&self, flags: &Flags) -> Vec<(&'static str, String)> {
        let (_, unit) = flags.mode.names();
        let mut rows = vec![(unit, self.units.to_string())];
        if flags.mode != Kind::Idle {
            rows.push(("per second", format!("{:.0}", self.per_second())));
            for (name, quantile) in [("p50 ms", 0.5), ("p99 ms", 0.99), ("p99.9 ms", 0.999), ("max ms", 1.0)]
            {
                let time = self.tally.times.value_at_quantile(quantile);
                rows.push((name, format!("{:.3}", time as f64 / 1e6)));
            }
            if let Some(cpu) = self.cpu_per_unit() {
                rows.push(("CPU µs each", format!("{cpu:.2}")));
            }
        }
        if let Some((before, after)) = self.rss {
            rows.push(("RSS KB before", (before / 1024).to_string()));
            rows.push(("RSS KB after", (after / 1024).to_string()));
            if flags.mode == Kind::Idle {
                rows.push((
                    "bytes each",
                    format!("{:.0}", (after as f64 - before as f64) / self.units as f64),
                ));
            }
        }
        for (name, count) in [
            ("lost", self.tally.lost),
            ("doubled", self.tally.doubled),
            ("out of order", self.tally.disordered),
            ("errors", self.tally.errors),
            ("rate_limited", self.tally.rate_limited),
        ] {
            if count > 0 {
                rows.push((name, count.to_string()));
            }
        }
        rows
    }
}

/// The ratios of the first server to the second, where they mean something.
fn ratios(reports: &[Report]) -> Option<(f64, Option<f64>)> {
    let [ours, theirs] = reports else { return None };
    let cpu = ours.cpu_per_unit().zip(theirs.cpu_per_unit()).map(|(ours, theirs)| ours / theirs);
    Some((ours.per_second() / theirs.per_second(), cpu))
}

fn table(reports: &[Report], flags: &Flags) {
    for (i, report) in reports.iter().enumerate() {
        if reports.len() > 1 {
            println!("{}", ["first server", "second server"][i]);
        }
        for (name, value) in report.rows(flags) {
            println!("{name:>15}  {value}");
        }
    }
    if let Some((rate, cpu)) = ratios(reports) {
        println!("first to second");
        println!("{:>15}  {rate:.3}", "per second");
        if let Some(cpu) = cpu {
            println!("{:>15}  {cpu:.3}", "CPU each");
        }
    }
}

fn json(reports: &[Report], flags: &Flags) -> serde_json::Value {
    let report = |report: &Report| {
        let ms = |quantile| report.tally.times.value_at_quantile(quantile) as f64 / 1e6;
        serde_json::json!({
            "units": report.units,
            "seconds": report.seconds,
            "per_second": report.per_second(),
            "ms": {"p50": ms(0.5), "p99": ms(0.99), "p99.9": ms(0.999), "max": ms(1.0)},
            "cpu_us_each": report.cpu_per_unit(),
            "rss_before": report.rss.map(|(before, _)| before),
            "rss_after": report.rss.map(|(_, after)| after),
            "lost": report.tally.lost,
            "doubled": report.tally.doubled,
            "out_of_order": report.tally.disordered,
            "errors": report.tally.errors,
            "rate_limited": report.tally.rate_limited,
        })
    };
    serde_json::json!({
        "mode": flags.mode.names().0,
        "servers": reports.iter().map(report).collect::<Vec<_>>(),
        "ratio_per_second": ratios(reports).map(|(rate, _)| rate),
        "ratio_cpu_each": ratios(reports).and_then(|(_, cpu)| cpu),
    })
}
