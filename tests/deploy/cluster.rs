//! Three nodes behind HAProxy with `scripts/deploy/haproxy-cluster.cfg`. Peers of a room reach the same node, also when nodes
//! stop and return.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::process::{Running, eventually, run};
use crate::common::program::{Program, free_port, is_installed};
use crate::common::readme::configuration;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tungstenite::{Error, Message, WebSocket};

const HAPROXY: &str = "/usr/sbin/haproxy";
/// Time after which missing connections between peers fail the test.
const WAIT_TIMEOUT: Duration = Duration::from_secs(180);
/// Time in which a new process of HAProxy gets the table of rooms from the old one, which it does not report.
const SYNCHRONIZATION_TIME: Duration = Duration::from_millis(2500);

/// Ports are chosen before they are bound, so one cluster runs at a time.
static TURN: Mutex<()> = Mutex::new(());

struct Cluster {
    ports: [u16; 3],
    /// `None` while the node is down.
    nodes: [Option<Running>; 3],
    balancer: Program,
    address: SocketAddr,
}

impl Cluster {
    fn start() -> Cluster {
        let ports = [(); 3].map(|()| free_port());
        let port = free_port();
        let peers = free_port();
        let nodes = ports.map(|port| Some(node(port)));
        let balancer = Program::start_after(HAPROXY, "-W -f haproxy.cfg", |home| {
            let mut text = configuration("haproxy-cluster.cfg");
            for (from, to) in [
                (":8080\n", format!("127.0.0.1:{port}\n")),
                ("127.0.0.1:10000", format!("127.0.0.1:{peers}")),
                ("10.0.0.1:8080", format!("127.0.0.1:{}", ports[0])),
                ("10.0.0.2:8080", format!("127.0.0.1:{}", ports[1])),
                ("10.0.0.3:8080", format!("127.0.0.1:{}", ports[2])),
            ] {
                assert!(text.contains(from), "{from}");
                text = text.replacen(from, &to, 1);
            }
            std::fs::write(home.join("haproxy.cfg"), text).unwrap();
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        balancer.wait_until("the balancer", || TcpStream::connect(address).ok());
        Cluster { ports, nodes, balancer, address }
    }

    /// Returns how often HAProxy has reported this state of a node, `UP` or `DOWN`.
    fn reports(&self, number: usize, state: &str) -> usize {
        let log = std::fs::read(self.balancer.home.join("log")).unwrap();
        String::from_utf8_lossy(&log).matches(&format!("Server nodes/n{} is {state}", number + 1)).count()
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].take().unwrap().signal(Signal::SIGKILL);
    }

    fn restart(&mut self, number: usize) {
        self.nodes[number] = Some(node(self.ports[number]));
    }
}

/// Starts a node. Rooms are closed in the second half of the drain, and until then HAProxy has to notice it, also on a busy
/// machine.
fn node(port: u16) -> Running {
    run(&format!(r#"exec "$0" -l 127.0.0.1:{port} --drain 30 --log error"#)).0
}

/// A peer that reconnects as the library does.
struct Member {
    room: String,
    id: String,
    socket: Option<WebSocket<TcpStream>>,
    again_at: Instant,
    /// How many times it has connected.
    came: u32,
    /// Members of the room, as far as it has received.
    others: BTreeSet<String>,
    messages_sent: u32,
    received: BTreeSet<(String, u64)>,
}

impl Member {
    fn new(room: &str, id: &str) -> Member {
        let others = BTreeSet::new();
        let received = BTreeSet::new();
        Member {
            room: room.to_owned(),
            id: id.to_owned(),
            socket: None,
            again_at: Instant::now(),
            came: 0,
            others,
            messages_sent: 0,
            received,
        }
    }

    fn open(&mut self, address: SocketAddr) -> Option<WebSocket<TcpStream>> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut socket, _) = tungstenite::client(format!("ws://{address}/ws/{}", self.room), stream).ok()?;
        socket.send(Message::text(json!({"type": "join", "id": self.id}).to_string())).ok()?;
        socket.get_ref().set_nonblocking(true).unwrap();
        self.came += 1;
        Some(socket)
    }

    /// Reads all available messages, or reconnects.
    fn run_step(&mut self, address: SocketAddr) {
        if self.socket.is_none() && self.again_at <= Instant::now() {
            self.socket = self.open(address);
        }
        let mut is_lost = false;
        while let Some(socket) = &mut self.socket {
            match socket.read() {
                Ok(Message::Text(text)) => self.receive(&serde_json::from_str(&text).unwrap()),
                Ok(Message::Close(_)) => is_lost = true,
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    is_lost = true;
                    break;
                }
            }
        }
        if is_lost || self.socket.is_none() {
            // Randomized like the library's pause, between half and one and a half of it.
            let pause = 125 + u64::from(self.came + self.messages_sent) * 97 % 250;
            if is_lost || self.again_at <= Instant::now() {
                self.again_at = Instant::now() + Duration::from_millis(pause);
            }
            self.socket = None;
            self.others.clear();
        }
    }

    fn receive(&mut self, message: &Value) {
        let id = message["id"].as_str().map(str::to_owned);
        match message["type"].as_str().unwrap() {
            "joined" => {
                let peers = message["peers"].as_array().unwrap().iter();
                self.others = peers.map(|id| id.as_str().unwrap().to_owned()).collect();
            }
            "peerJoined" => _ = self.others.insert(id.unwrap()),
            "peerLeft" => _ = self.others.remove(&id.unwrap()),
            "candidate" => {
                let candidate: Value = serde_json::from_str(message["candidate"].as_str().unwrap()).unwrap();
                assert_eq!(candidate["room"], *self.room, "the candidate is for this room");
                assert!(
                    self.received.insert((id.unwrap(), candidate["n"].as_u64().unwrap())),
                    "each candidate arrives once"
                );
            }
            // The target has just left.
            "error" => {}
            other => panic!("{other}"),
        }
    }

    /// Sends a candidate to each other member.
    fn send_candidates(&mut self) {
        self.messages_sent += 1;
        let candidate = json!({"room": self.room, "n": self.messages_sent});
        for target in &self.others {
            let candidate =
                json!({"type": "candidateAdd", "id": self.id, "target_id": target, "candidate": candidate});
            if let Some(socket) = &mut self.socket {
                // The next read reports the end of the connection.
                let _ = socket.send(Message::text(candidate.to_string()));
            }
        }
    }
}

const ROOMS: usize = 100;

/// Runs the members until a condition holds. Returns the elapsed time.
#[track_caller]
fn wait_until(
    members: &mut [Member],
    address: SocketAddr,
    mut condition: impl FnMut(&mut [Member]) -> bool,
) -> Duration {
    let began = Instant::now();
    loop {
        for member in &mut *members {
            member.run_step(address);
            member.send_candidates();
        }
        if condition(members) {
            return began.elapsed();
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "peers of a room have not connected");
        sleep(Duration::from_millis(50));
    }
}

/// Waits until each member has exchanged candidates with its partner and nobody else.
#[track_caller]
fn wait_for_pairs(members: &mut [Member], address: SocketAddr) -> Duration {
    wait_until(members, address, |members| {
        members.iter().all(|member| {
            let partner = if member.id == "a" { "b" } else { "a" };
            member.socket.is_some() && member.others.iter().eq([partner])
        })
    })
}

/// Connects a guest to each room, which sees both members and leaves.
#[track_caller]
fn connect_guests(members: &mut [Member], address: SocketAddr) {
    wait_for_pairs(members, address);
    let mut guests: Vec<Member> =
        (0..ROOMS).map(|room| Member::new(&format!("room-{room}"), "guest")).collect();
    let began = Instant::now();
    while guests.iter().any(|guest| guest.others.len() < 2) {
        members.iter_mut().chain(&mut guests).for_each(|member| member.run_step(address));
        let apart = guests.iter().filter(|guest| guest.others.len() < 2).count();
        assert!(began.elapsed() < WAIT_TIMEOUT, "{apart} do not see both members");
        sleep(Duration::from_millis(20));
    }
    assert!(guests.iter().all(|guest| guest.came == 1), "guests see both members immediately");
    drop(guests);
    wait_for_pairs(members, address);
}

#[test]
fn peers_of_a_room_meet_when_nodes_stop_and_return() {
    if !is_installed(HAPROXY) {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cluster = Cluster::start();
    let address = cluster.address;
    let mut members: Vec<Member> =
        (0..ROOMS).flat_map(|room| ["a", "b"].map(|id| Member::new(&format!("room-{room}"), id))).collect();
    println!("all meet in {:?}", wait_for_pairs(&mut members, address));
    for node in cluster.nodes.iter().flatten() {
        assert!(node.metric("rooms") > 10.0, "each node has connections");
    }
    connect_guests(&mut members, address);

    let downs = cluster.reports(0, "DOWN");
    cluster.kill(0);
    let lost =
        wait_until(&mut members, address, |members| members.iter().any(|member| member.socket.is_none()));
    println!("killed: all meet again in {:?}", lost + wait_for_pairs(&mut members, address));
    connect_guests(&mut members, address);
    wait_until(&mut members, address, |_| cluster.reports(0, "DOWN") > downs);
    let ups = cluster.reports(0, "UP");
    cluster.restart(0);
    wait_until(&mut members, address, |_| cluster.reports(0, "UP") > ups);
    // With the hash alone, guests would reach the restarted node, where the room is empty.
    connect_guests(&mut members, address);

    for number in 0..3 {
        let began = Instant::now();
        let came: u32 = members.iter().map(|member| member.came).sum();
        let downs = cluster.reports(number, "DOWN");
        cluster.nodes[number].as_ref().unwrap().signal(Signal::SIGTERM);
        // HAProxy knows the node, and still forwards late peers to existing rooms.
        wait_until(&mut members, address, |_| cluster.reports(number, "DOWN") > downs);
        connect_guests(&mut members, address);
        let node = cluster.nodes[number].as_mut().unwrap();
        let mut code = None;
        wait_until(&mut members, address, |_| {
            code = node.child.try_wait().unwrap();
            code.is_some()
        });
        assert_eq!(code.unwrap().code(), Some(0));
        let moved = members.iter().map(|member| member.came).sum::<u32>() - came;
        println!("node {number} is drained in {:?}, {moved} have moved", began.elapsed());
        let ups = cluster.reports(number, "UP");
        cluster.restart(number);
        wait_until(&mut members, address, |_| cluster.reports(number, "UP") > ups);
        connect_guests(&mut members, address);
    }

    cluster.balancer.signal(Signal::SIGUSR2);
    let began = Instant::now();
    wait_until(&mut members, address, |_| began.elapsed() > SYNCHRONIZATION_TIME);
    // The new process knows where each room is, and the old process still forwards the existing connections.
    connect_guests(&mut members, address);
    println!("reloaded");

    drop(members);
    eventually("all connections are closed", || {
        cluster.nodes.iter().flatten().all(|node| node.metric("connections") + node.metric("rooms") == 0.0)
    });
}

#[test]
fn rolling_restart_does_not_interrupt_connected_browsers() {
    let Some(_browsers) = reserve_browsers(3, &[HAPROXY, CHROMIUM]) else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cluster = Cluster::start();
    let [mut first, mut second, mut third] = Chromium::start();
    let address = cluster.address;
    let open_page = |browser: &mut Chromium, name: &str| {
        browser.open(&format!("http://{address}/?room=tea&name={name}"));
        browser.wait_until("document.querySelector('#status')?.dataset.state === 'online'");
    };
    open_page(&mut first, "first");
    open_page(&mut second, "second");
    for browser in [&mut first, &mut second] {
        browser.wait_until("[...room.peers.values()].some((peer) => peer.alive)");
        browser.eval("window.connection = [...room.peers.values()][0].pc; window.came = window.offline = 0");
        browser.eval("room.addEventListener('offline', () => window.offline += 1)");
        browser.eval("room.addEventListener('online', () => window.came += 1)");
    }
    for number in 0..3 {
        let [downs, ups] = ["DOWN", "UP"].map(|state| cluster.reports(number, state));
        let node = cluster.nodes[number].as_mut().unwrap();
        node.signal(Signal::SIGTERM);
        assert_eq!(node.code(), Some(0));
        eventually("the balancer knows that the node is down", || cluster.reports(number, "DOWN") > downs);
        cluster.restart(number);
        eventually("the balancer knows that the node is up", || cluster.reports(number, "UP") > ups);
    }
    // A new peer connects to both, whose connection to each other is unchanged.
    open_page(&mut third, "third");
    third.wait_until("[...room.peers.values()].filter((peer) => peer.alive).length === 2");
    for browser in [&mut first, &mut second] {
        browser
            .wait_until("room.online && [...room.peers.values()].filter((peer) => peer.alive).length === 2");
        assert_eq!(browser.eval("[...room.peers.values()].some(({ pc }) => pc === window.connection)"), true);
        assert_eq!(browser.eval("window.connection.connectionState"), "connected");
        let seen = browser.eval("`came ${window.came}, was offline ${window.offline}`");
        assert_ne!(browser.eval("window.came"), 0, "its node was one of the three: {seen}");
        browser.assert_no_errors();
    }
}
