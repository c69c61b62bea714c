//! Attacks on a server over real sockets, in one thread. Each test counts iterations of the loop, units of work,
//! credits or bytes, and only the test advances the clock. No test depends on the speed of the machine.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::loaded_server::{KIB, LoadedServer, MIB};
use crate::common::memory::remaining_state;
use crate::common::pipe::{PING, PONG, TEXT, frame};
use crate::common::raw::{LOOPBACK, Raw, run_iteration, server, text, upgrade};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use noroshi::config::Config;
use noroshi::limits::{
    ALWAYS_HELD_BYTES, AYAME_PING_EVERY, BASE_BYTES, CLAIMANTS_MAX, CONNECTION_BYTES,
    DEPARTURES_PER_ITERATION, PROBE_TIME_MAX, RATE_BLOCK_BYTES, RATE_BURST_SECONDS, RATE_VIOLATION_TIME_MAX,
    READ_BYTES_MAX, WORK_PER_ITERATION, WORK_PER_SESSION,
};
use noroshi::protocols::{ayame, matchbox};
use noroshi::server::Server;
use serde_json::{Value, json};

/// Bound on the work of one iteration: each session has a bound, and so has their sum, but the last message of each
/// session may be delivered to a whole mesh.
const WORK_MAX: usize = WORK_PER_ITERATION + WORK_PER_SESSION + 128;

/// A server under attack.
struct Harness {
    server: Server,
    address: SocketAddr,
    iterations: usize,
    /// Maximum and total units of work caused by one iteration.
    work_max: usize,
    work: usize,
    /// Time by which the clock advances in each iteration.
    pace: Duration,
}

impl Harness {
    fn new(config: &Config) -> Harness {
        let (server, address) = server(config);
        Harness { server, address, iterations: 0, work_max: 0, work: 0, pace: Duration::ZERO }
    }

    fn run_iteration(&mut self) {
        self.server.advance(self.pace);
        run_iteration(&mut self.server);
        self.iterations += 1;
        let work = self.server.work_of_last_iteration();
        self.work_max = self.work_max.max(work);
        self.work += work;
    }

    /// Runs iterations until a client has a result. Panics after `iterations_max` iterations.
    #[track_caller]
    fn wait_until<T>(
        &mut self,
        what: &str,
        iterations_max: usize,
        mut result: impl FnMut() -> Option<T>,
    ) -> T {
        for _ in 0..iterations_max {
            if let Some(result) = result() {
                return result;
            }
            self.run_iteration();
        }
        panic!("{what} does not arrive within {iterations_max} iterations");
    }

    /// Runs iterations until the server has nothing to do.
    fn run_until_idle(&mut self) {
        let mut idle_turns = 0;
        while idle_turns < 2 {
            self.run_iteration();
            idle_turns = if self.server.was_idle() { idle_turns + 1 } else { 0 };
        }
    }

    /// Runs iterations until the server has handled all bytes of a client.
    fn deliver(&mut self, client: &mut Raw) {
        while client.unwritten() > 0 {
            client.write(usize::MAX);
            self.run_iteration();
        }
        self.run_until_idle();
    }

    /// Connects to a path of the server.
    fn open(&mut self, path: &str) -> Raw {
        Raw::open(self.address, path)
    }

    /// Connects with a small receive buffer, so that TCP stops when the client does not read.
    fn open_slow(&mut self, path: &str) -> Raw {
        let mut raw = Raw::connect(self.address, LOOPBACK, Some(4 * KIB));
        raw.send(&upgrade(path));
        raw
    }

    /// Returns how many iterations a response to /healthz takes.
    fn iterations_of_health(&mut self, iterations_max: usize) -> usize {
        let before = self.iterations;
        let mut raw = Raw::connect(self.address, LOOPBACK, None);
        raw.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
        let status = self.wait_until("the answer of /healthz", iterations_max, || {
            raw.read(usize::MAX);
            raw.status()
        });
        assert_eq!(status, 200);
        self.iterations - before
    }

    /// Closes the clients and asserts that nothing is left in the server.
    fn finish(mut self, clients: Vec<Raw>) {
        drop(clients);
        for _ in 0..10_000 {
            if self.server.sessions() == 0 && self.server.was_idle() {
                break;
            }
            self.server.advance(Duration::from_millis(10));
            self.run_iteration();
        }
        assert_eq!(self.server.sessions(), 0);
        assert_eq!(remaining_state(self.server.dispatcher()), (0, 0, None));
        assert_eq!(self.server.shared().budget.used(), BASE_BYTES);
    }
}

fn message(kind: &str, id: &str) -> String {
    json!({"type": kind, "id": id}).to_string()
}

fn message_frame(kind: &str, id: &str) -> Vec<u8> {
    text(&message(kind, id))
}

/// Returns an id of 128 bytes, each of which takes two bytes in JSON.
fn long_id(number: usize) -> String {
    format!("{number:0>3}{}", "\"".repeat(125))
}

fn values(raw: &mut Raw) -> Vec<Value> {
    raw.texts().iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

// ---- Work of one iteration ----

#[test]
fn burst_of_claimants_and_a_mesh_is_handled_in_bounded_iterations() {
    let mut harness = Harness::new(&Config::default());
    // The pair is in another room.
    let mut pair = ["P", "Q"].map(|id| {
        let mut raw = harness.open("/ws/pair");
        raw.send(&message_frame("leave", id));
        raw
    });
    let mut clients: Vec<Raw> = Vec::new();
    for number in 0..63 {
        let mut member = harness.open("/ws/tea");
        member.send(&message_frame("join", &long_id(number)));
        clients.push(member);
    }
    let mut holder = harness.open("/ws/tea");
    holder.answers = false;
    holder.send(&message_frame("leave", "X"));
    harness.run_until_idle();
    for number in 0..30 {
        let mut claimant = harness.open("/ws/tea");
        let own = format!("c{number}");
        let again = [message_frame("join", &own), message_frame("leave", &own)].concat();
        claimant.push(&[message_frame("leave", "X"), again.repeat(490)].concat());
        clients.push(claimant);
    }
    let mut exchanged = 0;
    let mut iterations_of_health = 0;
    for step in 0..80 {
        for client in &mut clients {
            client.write(usize::MAX);
            client.read(usize::MAX);
        }
        if step == 20 {
            holder.send(&frame(PONG, b""));
        }
        harness.run_iteration();
        if step % 10 == 0 {
            iterations_of_health = iterations_of_health.max(harness.iterations_of_health(24));
            exchanged += 1;
            let candidate =
                json!({"type": "candidateAdd", "id": "P", "target_id": "Q", "candidate": exchanged});
            pair[0].send(&text(&candidate.to_string()));
            let received = harness.wait_until("a candidate", 24, || values(&mut pair[1]).pop());
            assert_eq!(received["candidate"], exchanged.to_string());
        }
    }
    println!(
        "/healthz took {iterations_of_health} iterations, an iteration {} units of work at most",
        harness.work_max
    );
    assert!(harness.work_max <= WORK_MAX, "{} units of work in one iteration", harness.work_max);
    clients.push(holder);
    clients.extend(pair);
    harness.finish(clients);
}

#[test]
fn silent_holder_is_replaced_in_bounded_iterations() {
    let mut harness = Harness::new(&Config::default());
    let mut clients: Vec<Raw> = Vec::new();
    for number in 0..63 {
        let mut member = harness.open("/ws/tea");
        member.send(&message_frame("join", &long_id(number)));
        clients.push(member);
    }
    let mut holder = harness.open("/ws/tea");
    holder.answers = false;
    holder.send(&message_frame("leave", "X"));
    harness.run_until_idle();
    for number in 0..30 {
        let mut claimant = harness.open("/ws/tea");
        let own = if number == 0 { "X".to_owned() } else { format!("c{number}") };
        let again = [message_frame("join", &own), message_frame("leave", &own)].concat();
        claimant.push(&[message_frame("leave", "X"), again.repeat(490)].concat());
        clients.push(claimant);
    }
    let mut heard_by_first = Vec::new();
    for step in 0..300 {
        for (place, client) in clients.iter_mut().enumerate() {
            client.write(usize::MAX);
            let texts = client.texts();
            if place == 63 {
                heard_by_first.extend(texts);
            }
        }
        if step == 50 {
            harness.server.advance(PROBE_TIME_MAX);
        }
        harness.run_iteration();
        if step == 49 {
            assert_eq!(heard_by_first, [""; 0], "a claimant receives nothing before the probe ends");
        }
    }
    holder.read(usize::MAX);
    assert_eq!(holder.close_code, Some(4000));
    assert!(heard_by_first[0].starts_with(r#"{"type":"joined","id":"X""#), "{}", heard_by_first[0]);
    assert!(harness.work_max <= WORK_MAX, "{} units of work in one iteration", harness.work_max);
    clients.push(holder);
    harness.finish(clients);
}

#[test]
fn leaving_a_crowded_ayame_room_causes_linear_work() {
    const CLIENTS: usize = 3000;
    let (_, files_max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, files_max, files_max).unwrap();
    let mut harness = Harness::new(&Config {
        mounts: vec![(&ayame::DESCRIPTOR.endpoint, "/signaling".to_owned())],
        ..Config::default()
    });
    let register = text(&json!({"type": "register", "roomId": "tea", "clientId": "c"}).to_string());
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = harness.open("/signaling");
        client.send(&register);
        clients.push(client);
        // The listen backlog may be short.
        if number % 100 == 0 {
            harness.run_until_idle();
        }
    }
    harness.run_until_idle();
    let work = harness.work;
    harness.work_max = 0;
    drop(clients);
    harness.run_until_idle();
    let work = harness.work - work;
    let work_max = harness.work_max;
    println!("{work} units of work when they leave, {work_max} in one iteration");
    assert!(work <= 10 * CLIENTS, "{work} units of work");
    assert!(
        work_max <= WORK_MAX + 10 * DEPARTURES_PER_ITERATION,
        "{work_max} units of work in one iteration"
    );
    harness.finish(Vec::new());
}

// ---- Slow readers ----

/// Bytes that a victim reads in an iteration of 4 ms: 1 MB a second.
const FAST: usize = 4 * KIB;

/// Fills a queue with forwarded messages: long ones while they fit, then shorter ones. `forward` makes a message with
/// this many bytes of content.
fn fill(attacker: &mut Raw, forward: impl Fn(usize) -> String) {
    for (bytes, times) in [(60_000, 14), (4_000, 18), (400, 12), (20, 12)] {
        for _ in 0..times {
            attacker.push(&text(&forward(bytes)));
        }
    }
    attacker.write(usize::MAX);
}

fn candidate(from: &str, to: &str, bytes: usize) -> String {
    json!({"type": "candidateAdd", "id": from, "target_id": to, "candidate": "x".repeat(bytes)}).to_string()
}

/// Lets a victim read at its pace and the attackers without limit, for this many iterations of 4 ms. Returns the types
/// of the messages that the victim has received, except candidates.
fn read_slowly(
    harness: &mut Harness,
    victim: &mut Raw,
    attackers: &mut [Raw],
    iterations: usize,
) -> Vec<String> {
    harness.pace = Duration::from_millis(4);
    let mut received = Vec::new();
    for _ in 0..iterations {
        for attacker in attackers.iter_mut() {
            attacker.write(usize::MAX);
            attacker.read(usize::MAX);
        }
        harness.run_iteration();
        for (first, payload) in victim.read(FAST) {
            assert_eq!(first, TEXT);
            let message: Value = serde_json::from_slice(&payload).unwrap();
            let kind = message["type"].as_str().map(str::to_owned);
            let key = || message.as_object().and_then(|it| it.keys().next()).cloned().unwrap();
            received.push(kind.unwrap_or_else(key));
        }
        assert_eq!(victim.close_code, None, "a victim that reads is closed");
        assert!(victim.is_connected(), "the victim is disconnected although it reads");
    }
    received.retain(|kind| kind != "candidate" && kind != "Signal");
    received
}

#[test]
fn slow_reader_receives_peer_left_of_its_partner() {
    let mut harness = Harness::new(&Config::default());
    let mut victim = harness.open_slow("/ws/tea");
    let mut attacker = harness.open("/ws/tea");
    attacker.send(&message_frame("connect", "A"));
    harness.run_until_idle();
    attacker.send(&text(&json!({"type": "offer", "id": "A", "sdp": "o"}).to_string()));
    victim.send(&message_frame("connect", "V"));
    harness.run_until_idle();
    victim.send(&text(&json!({"type": "answer", "id": "V", "sdp": "a"}).to_string()));
    harness.run_until_idle();
    assert_eq!(read_slowly(&mut harness, &mut victim, std::slice::from_mut(&mut attacker), 10), ["offer"]);
    fill(&mut attacker, |bytes| candidate("A", "V", bytes));
    attacker.push(&message_frame("leave", "A"));
    let received = read_slowly(&mut harness, &mut victim, std::slice::from_mut(&mut attacker), 1000);
    assert_eq!(received, ["peerLeft"]);
    harness.finish(vec![victim, attacker]);
}

#[test]
fn slow_reader_receives_mesh_notices() {
    let mut harness = Harness::new(&Config::default());
    let mut victim = harness.open_slow("/ws/tea");
    victim.send(&message_frame("join", "V"));
    harness.run_until_idle();
    let mut attackers = [harness.open("/ws/tea")];
    attackers[0].send(&message_frame("join", "A"));
    assert_eq!(read_slowly(&mut harness, &mut victim, &mut attackers, 10), ["joined", "peerJoined"]);
    let mut all = Vec::new();
    // As often as the rate limit allows.
    for _ in 0..20 {
        fill(&mut attackers[0], |bytes| candidate("A", "V", bytes));
        attackers[0].push(&[message_frame("leave", "A"), message_frame("join", "A")].concat().repeat(5));
        all.extend(read_slowly(&mut harness, &mut victim, &mut attackers, 250));
        if attackers[0].close_code.is_some() {
            break;
        }
    }
    all.extend(read_slowly(&mut harness, &mut victim, &mut attackers, 250));
    println!("{} announcements", all.len());
    assert!(all.len() >= 10, "{all:?}");
    let expected = ["peerLeft", "peerJoined"].into_iter().cycle();
    assert!(all.iter().zip(expected).all(|(received, expected)| received == expected), "{all:?}");
    let [attacker] = attackers;
    harness.finish(vec![victim, attacker]);
}

#[test]
fn slow_reader_is_not_closed_by_notices_with_long_ids() {
    let mut harness = Harness::new(&Config::default());
    let mut victim = harness.open_slow("/ws/tea");
    victim.send(&message_frame("join", "V"));
    harness.run_until_idle();
    let mut attackers = [harness.open("/ws/tea")];
    let id = long_id(0);
    attackers[0].send(&[message_frame("leave", &id), message_frame("join", &id)].concat().repeat(490));
    let received = read_slowly(&mut harness, &mut victim, &mut attackers, 2000);
    assert_eq!(received[0], "joined");
    assert!(
        received[1..]
            .chunks(2)
            .all(|two| two[0] == "peerJoined" && two.get(1).is_none_or(|it| it == "peerLeft"))
    );
    println!("{} announcements", received.len() - 1);
    let [attacker] = attackers;
    harness.finish(vec![victim, attacker]);
}

#[test]
fn slow_reader_receives_matchbox_notices() {
    let mut harness = Harness::new(&Config {
        mounts: vec![(&matchbox::DESCRIPTOR.endpoint, "/games".to_owned())],
        ..Config::default()
    });
    let mut victim = harness.open_slow("/games/chess");
    harness.run_until_idle();
    let assigned = values(&mut victim).pop().unwrap();
    let id = assigned["IdAssigned"].as_str().unwrap().to_owned();
    let mut attackers = vec![harness.open("/games/chess")];
    assert_eq!(read_slowly(&mut harness, &mut victim, &mut attackers, 10), ["NewPeer"]);
    fill(&mut attackers[0], |bytes| {
        json!({"Signal": {"receiver": id, "data": "x".repeat(bytes)}}).to_string()
    });
    harness.deliver(&mut attackers[0]);
    attackers.extend((0..40).map(|_| harness.open("/games/chess")));
    let received = read_slowly(&mut harness, &mut victim, &mut attackers, 1000);
    assert_eq!(received, vec!["NewPeer"; 40]);
    attackers.push(victim);
    harness.finish(attackers);
}

#[test]
fn slow_reader_receives_ayame_pings() {
    let mut harness = Harness::new(&Config {
        mounts: vec![(&ayame::DESCRIPTOR.endpoint, "/signaling".to_owned())],
        ..Config::default()
    });
    let register = text(&json!({"type": "register", "roomId": "tea", "clientId": "c"}).to_string());
    let mut victim = harness.open_slow("/signaling");
    victim.send(&register);
    harness.run_until_idle();
    let mut attackers = [harness.open("/signaling")];
    attackers[0].send(&register);
    assert_eq!(read_slowly(&mut harness, &mut victim, &mut attackers, 10), ["accept"]);
    // The ping is due while the queue is full.
    harness.pace = Duration::ZERO;
    harness.server.advance(AYAME_PING_EVERY - Duration::from_secs(2));
    harness.run_until_idle();
    victim.read(usize::MAX);
    fill(&mut attackers[0], |bytes| json!({"type": "candidate", "ice": "x".repeat(bytes)}).to_string());
    // The shortest forwarded message is hardly longer than the ping.
    attackers[0].push(&text(r#"{"type":"offer"}"#).repeat(40));
    harness.deliver(&mut attackers[0]);
    harness.server.advance(Duration::from_secs(2));
    let mut received = read_slowly(&mut harness, &mut victim, &mut attackers, 1000);
    received.retain(|kind| kind != "offer");
    assert_eq!(received, ["ping"]);
    let [attacker] = attackers;
    harness.finish(vec![victim, attacker]);
}

/// Claims the id of a peer whose queue is full and that reads this many bytes every 10 ms, for twice the time of a probe.
/// Asserts that it keeps its id. Returns how many bytes it has read.
fn claim_id_of_slow_reader(bytes_each: usize) -> usize {
    let mut harness = Harness::new(&Config::default());
    let mut victim = harness.open_slow("/ws/tea");
    victim.send(&message_frame("join", "V"));
    let mut attacker = harness.open("/ws/tea");
    attacker.send(&message_frame("join", "A"));
    harness.run_until_idle();
    fill(&mut attacker, |bytes| candidate("A", "V", bytes));
    harness.deliver(&mut attacker);
    let mut claimant = harness.open("/ws/tea");
    claimant.send(&message_frame("join", "V"));
    harness.pace = Duration::from_millis(10);
    let mut received = Vec::new();
    for _ in 0..1000 {
        harness.run_iteration();
        victim.read(bytes_each);
        attacker.read(usize::MAX);
        received.extend(values(&mut claimant));
        assert_eq!(victim.close_code, None);
    }
    assert_eq!(received.len(), 1, "{received:?}");
    assert_eq!(received[0]["code"], "id_taken");
    let bytes_read = victim.bytes_read;
    harness.finish(vec![victim, attacker, claimant]);
    bytes_read
}

#[test]
fn slow_reader_keeps_its_claimed_id() {
    let bytes_read = claim_id_of_slow_reader(500);
    assert!(bytes_read > 300 * KIB, "the victim reads {bytes_read} bytes");
}

/// Bytes that a very slow peer reads are noticed although epoll does not yet report its socket as writable.
#[test]
fn very_slow_reader_keeps_its_id() {
    claim_id_of_slow_reader(50);
}

#[test]
fn slow_reader_is_not_closed_as_silent() {
    let config = Config::default();
    let mut harness = Harness::new(&config);
    let mut victim = harness.open_slow("/ws/tea");
    victim.send(&message_frame("join", "V"));
    let mut attacker = harness.open("/ws/tea");
    attacker.send(&message_frame("join", "A"));
    harness.run_until_idle();
    // 8 KB a second, for five times the silence that is tolerated.
    harness.pace = Duration::from_millis(100);
    let steps = 10 * config.ping_interval.as_millis() / harness.pace.as_millis();
    for step in 0..steps {
        if step % 100 == 0 {
            fill(&mut attacker, |bytes| candidate("A", "V", bytes));
        }
        attacker.write(usize::MAX);
        harness.run_iteration();
        victim.read(800);
        attacker.read(usize::MAX);
        assert_eq!(victim.close_code, None, "after {} bytes", victim.bytes_read);
        assert!(victim.is_connected());
    }
    assert_eq!(attacker.close_code, None);
    println!("{} bytes, {} pings", victim.bytes_read, victim.pings);
    harness.finish(vec![victim, attacker]);
}

// ---- Memory ----

/// Returns a claim followed by short messages within the claimant's burst.
fn short_messages() -> Vec<u8> {
    [message_frame("leave", "X"), text("x").repeat(999)].concat()
}

#[test]
fn short_messages_of_claimants_are_within_the_counted_memory() {
    let memory_max = BASE_BYTES + 400 * CONNECTION_BYTES;
    let mut harness = Harness::new(&Config { memory_bytes_max: Some(memory_max), ..Config::default() });
    let mut holder = harness.open("/ws/tea");
    holder.answers = false;
    holder.send(&message_frame("leave", "X"));
    harness.run_until_idle();
    let mut clients = Vec::new();
    for _ in 0..2 * CLAIMANTS_MAX {
        let mut claimant = harness.open("/ws/tea");
        claimant.push(&short_messages());
        clients.push(claimant);
    }
    for _ in 0..100 {
        for client in &mut clients {
            client.write(usize::MAX);
            client.read(usize::MAX);
        }
        harness.run_iteration();
        let used = harness.server.shared().budget.used();
        let always = harness.server.sessions() * ALWAYS_HELD_BYTES;
        assert!(used <= memory_max + always, "{used} bytes are used, {memory_max} are allowed");
    }
    let reserved = harness.server.shared().budget.reserved();
    assert!(reserved > 0, "the first message of a claimant is counted");
    clients.push(holder);
    harness.finish(clients);
}

#[test]
fn short_messages_of_claimants_are_within_the_process_memory() {
    let mut loaded = LoadedServer::start("--max-memory 32M --max-connections 3000");
    let connect = |address: SocketAddr, bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        // TCP buffers only some of the bytes.
        let _ = stream.write(bytes);
        stream
    };
    let holder = connect(loaded.address(), &[upgrade("/ws/tea"), message_frame("leave", "X")].concat());
    let claim = [upgrade("/ws/tea"), short_messages()].concat();
    let claimants = loaded.connect_many(2000, |address, _| connect(address, &claim));
    loaded.run_for(Duration::from_secs(2));
    drop((holder, claimants));
    loaded.finish(40 * MIB);
}

// ---- Credits ----

#[test]
fn repeated_join_is_charged_by_the_length_of_its_answer() {
    let config = Config::default();
    let mut harness = Harness::new(&config);
    let mut clients = Vec::new();
    for number in 0..config.mesh_peers_max {
        let mut member = harness.open("/ws/tea");
        member.send(&message_frame("join", &long_id(number)));
        clients.push(member);
    }
    harness.run_until_idle();
    clients.iter_mut().for_each(|member| _ = member.texts());
    let before = clients[0].bytes_read;
    let again = message_frame("join", &long_id(0));
    let mut answers = 0;
    let began = harness.server.shared().now;
    for _ in 0..800 {
        clients[0].send(&again.repeat(4));
        harness.run_iteration();
        answers += clients[0].texts().iter().filter(|text| text.contains("\"joined\"")).count();
    }
    assert_eq!(clients[0].close_code, None);
    let bytes = clients[0].bytes_read - before;
    let elapsed = harness.server.shared().now - began;
    let seconds = RATE_BURST_SECONDS as usize + 1 + elapsed.as_secs() as usize;
    let credits = config.rate_max as usize * seconds;
    println!("{answers} answers of {} bytes for {credits} credits", bytes / answers);
    assert!(answers > 10, "a member may join again");
    assert!(bytes <= credits * RATE_BLOCK_BYTES, "{bytes} bytes for {credits} credits");
    harness.finish(clients);
}

/// Lets a peer send these bytes continuously at the default rate while it is connected. Asserts that it is notified and
/// closed and that its effects are bounded.
fn flood(begin: &[u8], again: &[u8]) {
    let config = Config::default();
    let mut harness = Harness::new(&config);
    let mut flooder = harness.open("/ws/tea");
    flooder.send(&message_frame("leave", "F"));
    harness.run_until_idle();
    flooder.texts();
    let received_before = harness.server.shared().metrics.bytes_in;
    let turns_before = harness.iterations;
    flooder.push(begin);
    let chunk = again.repeat(16 * KIB / again.len());
    harness.pace = Duration::from_millis(10);
    let mut notices = 0;
    let mut pongs = 0;
    let began = harness.server.shared().now;
    let mut elapsed = Duration::ZERO;
    while flooder.close_code.is_none() {
        assert!(elapsed < 3 * RATE_VIOLATION_TIME_MAX, "a continuous sender is closed");
        if flooder.unwritten() < chunk.len() {
            flooder.push(&chunk);
        }
        flooder.write(usize::MAX);
        harness.run_iteration();
        elapsed = harness.server.shared().now - began;
        for (first, payload) in flooder.read(usize::MAX) {
            if first == PONG {
                pongs += 1;
                continue;
            }
            let message: Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(message["code"], "rate_limited");
            notices += 1;
        }
    }
    assert_eq!(flooder.close_code, Some(1008));
    assert!(elapsed < RATE_VIOLATION_TIME_MAX + Duration::from_secs(2), "{elapsed:?}");
    assert!((1..=6).contains(&notices), "{notices} notices");
    let seconds = elapsed.as_secs() as usize + 1 + RATE_BURST_SECONDS as usize;
    let credits = config.rate_max as usize * seconds;
    assert!(pongs <= credits, "{pongs} pongs for {credits} credits");
    let iterations = harness.iterations - turns_before;
    let received = (harness.server.shared().metrics.bytes_in - received_before) as usize;
    println!("{received} bytes in {iterations} iterations; {pongs} pongs, notices {notices} times");
    assert!(received <= iterations * READ_BYTES_MAX, "{received} bytes in {iterations} iterations");
    assert!(harness.work_max <= WORK_PER_SESSION + 1, "{} units of work in one iteration", harness.work_max);
    harness.finish(vec![flooder]);
}

#[test]
fn continuous_pings_are_reported_and_closed() {
    flood(b"", &frame(PING, &[7; 125]));
    flood(b"", &frame(PING, b""));
}

#[test]
fn continuous_pongs_are_reported_and_closed() {
    flood(b"", &frame(PONG, b""));
}

#[test]
fn continuous_empty_fragments_are_reported_and_closed() {
    flood(&frame(0x01, b""), &frame(0x00, b""));
}

#[test]
fn continuous_one_byte_fragments_are_reported_and_closed() {
    let message = message("leave", "F");
    let mut fragments: Vec<u8> = message.bytes().flat_map(|byte| frame(0x00, &[byte])).collect();
    fragments[0] = 0x01;
    let last = fragments.len() - frame(0x00, b"}").len();
    fragments[last] = 0x80;
    flood(b"", &fragments);
}

// ---- Combinations ----

/// A burst of `leave` and `join` under a long id, as long as the sender has credits, is less than the reader's queue is
/// given for messages of the server.
#[test]
fn slow_reader_is_not_closed_by_a_burst_of_notices() {
    let mut harness = Harness::new(&Config::default());
    let mut victim = harness.open_slow("/ws/tea");
    victim.send(&message_frame("join", "V"));
    harness.run_until_idle();
    let id = long_id(0);
    let mut attackers = [harness.open("/ws/tea")];
    attackers[0].send(&message_frame("join", &id));
    read_slowly(&mut harness, &mut victim, &mut attackers, 10);
    fill(&mut attackers[0], |bytes| candidate(&id, "V", bytes));
    attackers[0].push(&[message_frame("leave", &id), message_frame("join", &id)].concat().repeat(300));
    let received = read_slowly(&mut harness, &mut victim, &mut attackers, 2000);
    assert!(received.len() > 100, "{} notices", received.len());
    let [attacker] = attackers;
    harness.finish(vec![victim, attacker]);
}

/// The pongs that the server asks for by its probes cost nothing, however often somebody claims an id.
#[test]
fn pongs_that_answer_probes_are_not_charged() {
    for (round_trip_ms, own_message_every_ms) in [(0, 1000), (20, 100)] {
        let mut harness = Harness::new(&Config::default());
        let mut holder = harness.open("/ws/tea");
        holder.answers = false;
        holder.send(&message_frame("leave", "X"));
        harness.run_until_idle();
        let mut attacker = harness.open("/ws/tea");
        attacker.send(&message_frame("connect", "X"));
        harness.pace = Duration::from_millis(1);
        let mut claims = 0;
        let mut answered_pings = 0;
        let mut pongs_due = std::collections::VecDeque::new();
        for ms in 1..20_000 {
            harness.run_iteration();
            assert_eq!(holder.texts(), [""; 0], "the holder receives no message");
            for _ in answered_pings..holder.pings {
                pongs_due.push_back(ms + round_trip_ms);
            }
            answered_pings = holder.pings;
            while pongs_due.front().is_some_and(|due| *due <= ms) {
                pongs_due.pop_front();
                holder.send(&frame(PONG, b""));
            }
            if ms % own_message_every_ms == 0 {
                holder.send(&message_frame("leave", "X"));
            }
            for text in attacker.texts() {
                if text.contains("id_taken") {
                    claims += 1;
                    attacker.send(&message_frame("connect", "X"));
                }
            }
            // A connection that is over its rate is replaced by another one.
            if attacker.close_code.is_some() || claims % 1900 == 1899 {
                claims += 1;
                attacker = harness.open("/ws/tea");
                attacker.send(&message_frame("connect", "X"));
            }
        }
        assert_eq!(holder.close_code, None);
        assert!(claims > 300, "{claims} claims");
        harness.finish(vec![holder, attacker]);
    }
}

/// Input that arrived while the server was stopped is read before a probe ends, also if it is more than one iteration can handle.
#[test]
fn probe_does_not_end_before_pending_input_is_read() {
    let mut harness = Harness::new(&Config::default());
    let mut holder = harness.open("/ws/tea");
    holder.answers = false;
    holder.send(&message_frame("leave", "X"));
    let mut flooders: Vec<Raw> = Vec::new();
    for number in 0..20 {
        let mut flooder = harness.open("/ws/tea");
        flooder.send(&message_frame("leave", &format!("f{number}")));
        flooders.push(flooder);
    }
    let mut claimant = harness.open("/ws/tea");
    harness.run_until_idle();
    claimant.send(&message_frame("leave", "X"));
    harness.run_until_idle();
    for flooder in &mut flooders {
        flooder.send(&text("x").repeat(1000));
    }
    holder.send(&frame(PONG, b""));
    harness.server.advance(PROBE_TIME_MAX + Duration::from_secs(1));
    harness.run_until_idle();
    holder.read(usize::MAX);
    assert_eq!(holder.close_code, None);
    assert!(claimant.texts()[0].contains("id_taken"));
    flooders.extend([holder, claimant]);
    harness.finish(flooders);
}

/// Peers that hold an old offer are sent the next one only when they have read the previous one.
#[test]
fn holders_of_old_offers_are_not_closed_by_a_series_of_offers() {
    let mut harness = Harness::new(&Config::default());
    // 60 KB in the message, and 120 KB when it is escaped once more.
    let sdp = "\"".repeat(30_000);
    let offer = |id: &str| text(&json!({"type": "offer", "id": id, "sdp": sdp}).to_string());
    let mut attackers: Vec<Raw> = (0..3).map(|_| harness.open("/ws/tea")).collect();
    let names = ["A", "D", "B"];
    attackers[0].send(&message_frame("connect", "A"));
    harness.run_until_idle();
    attackers[0].push(&offer("A"));
    harness.deliver(&mut attackers[0]);
    attackers[1].send(&message_frame("leave", "D"));
    attackers[2].send(&message_frame("leave", "B"));
    let mut victims: Vec<Raw> = Vec::new();
    for number in 0..20 {
        let mut victim = harness.open_slow("/ws/tea");
        victim.send(&message_frame("connect", &format!("v{number}")));
        victims.push(victim);
    }
    harness.run_until_idle();
    harness.pace = Duration::from_millis(4);
    let mut run = |harness: &mut Harness, iterations: usize| {
        for _ in 0..iterations {
            harness.run_iteration();
            for victim in &mut victims {
                victim.read(FAST);
                assert_eq!(victim.close_code, None);
            }
        }
    };
    run(&mut harness, 300);
    let (mut owner, mut other) = (0, 1);
    for _ in 0..30 {
        let answer = json!({"type": "answer", "id": "B", "target_id": names[owner], "sdp": "a"});
        let steps = [
            (2, text(&answer.to_string())),
            (other, message_frame("connect", names[other])),
            (other, offer(names[other])),
            (owner, message_frame("leave", names[owner])),
        ];
        for (who, bytes) in steps {
            attackers[who].push(&bytes);
            while attackers[who].unwritten() > 0 {
                attackers[who].write(usize::MAX);
                run(&mut harness, 1);
            }
            run(&mut harness, 5);
            for attacker in &mut attackers {
                attacker.texts();
            }
        }
        std::mem::swap(&mut owner, &mut other);
    }
    attackers.extend(victims);
    harness.finish(attackers);
}
