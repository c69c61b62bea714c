//! `scripts/minimal.rs` as a process: the transcripts of the article, and peers that misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::client::Client;
use crate::common::pipe::{CLOSE, TEXT, close, frame, plain_frame};
use crate::common::process::{Running, eventually, example};
use crate::common::rng::Rng;
use crate::common::transcript::{self, HttpResponse, Received, Transport};
use nix::sys::signal::Signal;
use noroshi::http::token::Claims;
use serde_json::{Value, json};

/// The first byte of a binary message in one frame (RFC 6455, section 5.2).
const BINARY: u8 = 0x82;
/// The first byte of a text message that continues in further frames.
const TEXT_BEGINS: u8 = 0x01;
/// The first byte of a frame that continues a message and does not end it.
const CONTINUATION: u8 = 0x00;

/// A running server. It is killed at the end of the test.
struct Minimal {
    running: Running,
    /// Kept open, because the server writes to it.
    _stderr: BufReader<ChildStderr>,
}

impl Minimal {
    fn start() -> Minimal {
        let mut command = Command::new(example("minimal"));
        command.arg("127.0.0.1:0").env_remove("RUST_LOG").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let (_, address) = line.trim_end().split_once("listening on ws://").expect("the address");
        let address = address.strip_suffix("/ws").unwrap().parse().unwrap();
        Minimal { running: Running { child, address, metrics: address }, _stderr: stderr }
    }

    fn address(&self) -> SocketAddr {
        self.running.address
    }

    fn client(&self) -> Client {
        Client::open(self.address(), "")
    }

    /// Opens a connection, sends a message, and waits until the server has handled it. The message must have no reply.
    fn registered(&self, id: &str) -> Client {
        let mut client = self.client();
        client.send_json(json!({"type": "leave", "id": id}));
        assert_eq!(client.sync(), [] as [Value; 0]);
        client
    }

    /// Asserts that the queue is empty, and that two new peers become a pair.
    #[track_caller]
    fn assert_pairs_two_peers(&self) {
        let (mut offerer, mut answerer) = (self.client(), self.client());
        pair(&mut offerer, "last offerer", &mut answerer, "last answerer");
        leave(&mut answerer);
        assert_eq!(offerer.receive_json(), json!({"type": "peerLeft", "id": "last answerer"}));
        leave(&mut offerer);
    }
}

#[track_caller]
fn pair(offerer: &mut Client, offerer_id: &str, answerer: &mut Client, answerer_id: &str) {
    offerer.send_json(json!({"type": "connect", "id": offerer_id}));
    assert_eq!(offerer.receive_json(), json!({"type": "offer"}));
    offerer.send_json(json!({"type": "offer", "id": offerer_id, "sdp": "o"}));
    offerer.sync();
    answerer.send_json(json!({"type": "connect", "id": answerer_id}));
    assert_eq!(answerer.receive_json(), json!({"type": "offer", "sdp": "\"o\"", "target_id": offerer_id}));
    answerer.send_json(json!({"type": "answer", "id": answerer_id, "target_id": offerer_id, "sdp": "a"}));
    assert_eq!(offerer.receive_json(), json!({"type": "answer", "sdp": "\"a\"", "id": answerer_id}));
}

/// Closes the connection and waits until the server has closed it too.
fn leave(client: &mut Client) {
    client.answers = false;
    client.send(&frame(CLOSE, &close(1000, "")[2..]));
    client.receive_close();
    assert_eq!(client.read_up_to(1), 0, "nothing follows a Close");
}

/// Returns the reply to a message that is refused, with the `target_id` of that message.
fn error(code: &str, target_id: Option<&str>) -> Value {
    json!({"type": "error", "code": code, "target_id": target_id})
}

// ---- Transcripts ----

struct Sockets {
    minimal: Minimal,
    clients: BTreeMap<String, (Client, VecDeque<Received>)>,
}

impl Sockets {
    /// Waits until the server has handled all that was sent, and all clients have what it caused.
    fn sync(&mut self) {
        // The first round ends when everything is handled, the second when everything has arrived.
        for _ in 0..2 {
            for (client, received) in self.clients.values_mut() {
                let messages = client.sync().into_iter();
                received.extend(messages.map(|message| Received::Text(message.to_string())));
            }
        }
    }
}

impl Transport for Sockets {
    fn open(&mut self, peer: &str, _: &str) {
        self.clients.insert(peer.to_owned(), (self.minimal.client(), VecDeque::new()));
        self.sync();
    }

    fn send(&mut self, peer: &str, text: &[u8], binary: bool) {
        let first = if binary { BINARY } else { TEXT };
        self.clients.get_mut(peer).unwrap().0.send(&frame(first, text));
        self.sync();
    }

    fn close(&mut self, peer: &str) {
        let (mut client, _) = self.clients.remove(peer).unwrap();
        leave(&mut client);
        self.sync();
    }

    fn next_received(&mut self, peer: &str) -> Option<Received> {
        self.clients.get_mut(peer)?.1.pop_front()
    }

    fn finish(mut self: Box<Self>) {
        self.clients.clear();
        self.minimal.assert_pairs_two_peers();
    }

    fn open_with_token(&mut self, _: &str, _: &str, _: &Claims) {
        unreachable!("there are no tokens");
    }

    fn open_at(&mut self, _: &str, _: &str) {
        unreachable!("there is one protocol");
    }

    fn status(&mut self, _: &str, _: bool) -> Option<u16> {
        None
    }

    fn stop_reading(&mut self, _: &str) {
        unreachable!("the article has no such lines");
    }

    fn reset(&mut self, _: &str) {
        unreachable!("the article has no such lines");
    }

    fn request_resource(&mut self, _: &str, _: &str, _: Option<&str>) -> Option<HttpResponse> {
        None
    }

    fn advance_by(&mut self, _: Duration) {
        unreachable!("time does not pass");
    }
}

#[test]
fn plays_all_transcripts_of_the_article() {
    let transcripts = transcript::all().into_iter().filter(|it| it.name.starts_with("article"));
    let mut count = 0;
    for transcript in transcripts {
        println!("{}", transcript.name);
        transcript.play(Box::new(Sockets { minimal: Minimal::start(), clients: BTreeMap::new() }));
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

// ---- Rules ----

#[test]
fn invalid_message_is_answered_with_an_error() {
    let server = Minimal::start();
    let mut client = server.client();
    let deep = "[".repeat(30_000);
    let messages = [
        "",
        "{",
        "null",
        "[]",
        r#"{"type":"connect","id":"A"} x"#,
        r#"{"type":"connect","id":"A","sdp":01}"#,
        &deep,
        &format!(r#"{{"type":"connect","id":"A","sdp":{deep}}}"#),
        &format!(r#"{{"type":"connect","id":"A","x":{deep}}}"#),
        "{}",
        r#"{"type":null,"id":"A"}"#,
        r#"{"type":1,"id":"A"}"#,
        r#"{"type":"connect"}"#,
        r#"{"type":"connect","id":["A"]}"#,
        r#"{"type":"connect","id":"\ud800"}"#,
        r#"{"type":"connect","id":"A","id":"B"}"#,
        r#"{"type":"answer","id":"A","target_id":1}"#,
    ];
    for text in messages {
        client.send_text(text);
        assert_eq!(client.receive_json(), json!({"type": "error", "code": "bad_message"}), "{text:.60}");
    }
    client.send_json(json!({"type": "connect", "id": ""}));
    assert_eq!(client.receive_json(), error("bad_message", None));
    // None of them has registered an id.
    client.send_json(json!({"type": "connect", "id": "another"}));
    assert_eq!(client.receive_json(), json!({"type": "offer"}));
    leave(&mut client);
    server.assert_pairs_two_peers();
}

#[test]
fn unknown_type_is_answered_with_an_error() {
    let server = Minimal::start();
    let mut client = server.client();
    client.send_json(json!({"type": "Connect", "id": "A"}));
    assert_eq!(client.receive_json(), error("unknown_type", None));
}

#[test]
fn names_and_values_may_be_escaped() {
    let server = Minimal::start();
    let mut client = server.client();
    client.send_text(r#" {"id":"A", "t\u0079pe" : "\u0063onnect" , "x":[{}]} "#);
    assert_eq!(client.receive_json(), json!({"type": "offer"}));
}

#[test]
fn sdp_and_candidate_are_relayed_as_they_were_written() {
    let server = Minimal::start();
    let (mut a, mut b) = (server.client(), server.client());
    pair(&mut a, "A", &mut b, "B");
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let texts =
        [r#"{"b":1.0e+05, "a" : "\u00e9\/é\ud800","a":[ ]}"#, "123456789012345678901234567890", &deep];
    for text in texts {
        b.send_text(&format!(r#"{{"type":"candidateAdd","id":"B","candidate": {text} }}"#));
        assert_eq!(a.receive_json(), json!({"type": "candidate", "candidate": text, "id": "B"}));
        a.send_text(&format!(r#"{{"type":"offer","id":"A","sdp":{text}}}"#));
        assert_eq!(b.receive_json(), json!({"type": "offer", "sdp": text, "target_id": "A", "id": "A"}));
    }
}

#[test]
fn id_belongs_to_one_connection() {
    let server = Minimal::start();
    let mut holder = server.registered("A");
    let mut second = server.client();
    second.send_json(json!({"type": "connect", "id": "A"}));
    assert_eq!(second.receive_json(), error("id_taken", None));
    second.send_json(json!({"type": "connect", "id": "B"}));
    assert_eq!(second.receive_json(), json!({"type": "offer"}));
    second.send_json(json!({"type": "offer", "id": "C"}));
    assert_eq!(second.receive_json(), error("id_mismatch", None));
    leave(&mut holder);
    let mut third = server.registered("A");
    leave(&mut third);
    leave(&mut second);
    server.assert_pairs_two_peers();
}

#[test]
fn message_to_an_unknown_target_is_refused() {
    let server = Minimal::start();
    let mut client = server.registered("A");
    for kind in ["offer", "answer", "candidateAdd"] {
        for target in ["nobody", "A"] {
            client.send_json(json!({"type": kind, "id": "A", "target_id": target}));
            assert_eq!(client.receive_json(), error("unknown_peer", Some(target)));
        }
    }
    client.send_json(json!({"type": "answer", "id": "A"}));
    assert_eq!(client.receive_json(), error("bad_message", None));
    server.assert_pairs_two_peers();
}

#[test]
fn waiting_peers_are_asked_in_their_order() {
    let server = Minimal::start();
    let ids = ["A", "B", "C", "D", "E"];
    let mut clients = ids.map(|id| {
        let mut client = server.client();
        client.send_json(json!({"type": "connect", "id": id}));
        let expected = if id == "A" { vec![json!({"type": "offer"})] } else { vec![] };
        assert_eq!(client.sync(), expected);
        client
    });
    let [a, b, c, d, e] = &mut clients;
    d.send_json(json!({"type": "offer", "id": "D", "sdp": 1}));
    assert_eq!(d.receive_json(), error("not_offerer", None));
    // A leaves without an offer: B is asked.
    leave(a);
    assert_eq!(b.receive_json(), json!({"type": "offer"}));
    d.send_json(json!({"type": "leave", "id": "D"}));
    assert_eq!(d.sync(), [] as [Value; 0]);
    // The others receive the offer of B. One that connects later receives it too.
    b.send_json(json!({"type": "candidateAdd", "id": "B", "candidate": 0}));
    b.send_json(json!({"type": "offer", "id": "B", "sdp": 1}));
    let offer = json!({"type": "offer", "sdp": "1", "target_id": "B"});
    assert_eq!(c.receive_json(), offer);
    assert_eq!(e.receive_json(), offer);
    d.send_json(json!({"type": "connect", "id": "D"}));
    assert_eq!(d.receive_json(), offer);
    e.send_json(json!({"type": "answer", "id": "E", "target_id": "B", "sdp": 2}));
    assert_eq!(b.receive_json(), json!({"type": "answer", "sdp": "2", "id": "E"}));
    assert_eq!(e.receive_json(), json!({"type": "candidate", "candidate": "0", "id": "B"}));
    for client in [b, c, d, e] {
        assert_eq!(client.sync(), [] as [Value; 0]);
    }
}

#[test]
fn late_answer_is_refused_and_its_sender_connects_again() {
    let server = Minimal::start();
    let (mut a, mut b, mut late) = (server.client(), server.client(), server.client());
    a.send_json(json!({"type": "connect", "id": "A"}));
    a.send_json(json!({"type": "offer", "id": "A", "sdp": 1}));
    a.send_json(json!({"type": "candidateAdd", "id": "A", "candidate": 1}));
    assert_eq!(a.sync(), [json!({"type": "offer"})]);
    let offer = json!({"type": "offer", "sdp": "1", "target_id": "A"});
    for (client, id) in [(&mut b, "B"), (&mut late, "C")] {
        client.send_json(json!({"type": "connect", "id": id}));
        assert_eq!(client.receive_json(), offer);
    }
    // C has no offer of its own yet, to which this candidate could belong.
    late.send_json(json!({"type": "candidateAdd", "id": "C", "candidate": 0}));
    late.sync();
    b.send_json(json!({"type": "answer", "id": "B", "target_id": "A", "sdp": 2}));
    assert_eq!(a.receive_json(), json!({"type": "answer", "sdp": "2", "id": "B"}));
    assert_eq!(b.receive_json(), json!({"type": "candidate", "candidate": "1", "id": "A"}));
    late.send_json(json!({"type": "answer", "id": "C", "target_id": "A", "sdp": 3}));
    assert_eq!(late.sync(), [json!({"type": "offer"}), error("offer_taken", Some("A"))]);
    late.send_json(json!({"type": "offer", "id": "C", "sdp": 4}));
    let mut last = server.client();
    last.send_json(json!({"type": "connect", "id": "D"}));
    assert_eq!(last.receive_json(), json!({"type": "offer", "sdp": "4", "target_id": "C"}));
    last.send_json(json!({"type": "answer", "id": "D", "target_id": "C", "sdp": 5}));
    assert_eq!(late.receive_json(), json!({"type": "answer", "sdp": "5", "id": "D"}));
    for client in [&mut a, &mut b, &mut late, &mut last] {
        assert_eq!(client.sync(), [] as [Value; 0]);
    }
}

#[test]
fn offer_of_a_peer_that_left_cannot_be_answered() {
    let server = Minimal::start();
    let (mut a, mut b) = (server.client(), server.client());
    a.send_json(json!({"type": "connect", "id": "A"}));
    a.send_json(json!({"type": "offer", "id": "A", "sdp": 1}));
    a.send_json(json!({"type": "candidateAdd", "id": "A", "candidate": 1}));
    assert_eq!(a.sync(), [json!({"type": "offer"})]);
    b.send_json(json!({"type": "connect", "id": "B"}));
    assert_eq!(b.receive_json(), json!({"type": "offer", "sdp": "1", "target_id": "A"}));
    // A begins again, and is asked again.
    a.send_json(json!({"type": "leave", "id": "A"}));
    a.send_json(json!({"type": "connect", "id": "A"}));
    assert_eq!(a.sync(), [json!({"type": "offer"})]);
    b.send_json(json!({"type": "answer", "id": "B", "target_id": "A", "sdp": 2}));
    assert_eq!(b.receive_json(), error("offer_taken", Some("A")));
    // B waits for the new offer, which has no old candidates.
    a.send_json(json!({"type": "offer", "id": "A", "sdp": 3}));
    assert_eq!(b.receive_json(), json!({"type": "offer", "sdp": "3", "target_id": "A"}));
    b.send_json(json!({"type": "answer", "id": "B", "target_id": "A", "sdp": 4}));
    assert_eq!(a.receive_json(), json!({"type": "answer", "sdp": "4", "id": "B"}));
    assert_eq!(b.sync(), [] as [Value; 0]);
    leave(&mut a);
    assert_eq!(b.receive_json(), json!({"type": "peerLeft", "id": "A"}));
    b.send_json(json!({"type": "answer", "id": "B", "target_id": "A", "sdp": 5}));
    assert_eq!(b.receive_json(), error("unknown_peer", Some("A")));
}

#[test]
fn second_offer_is_refused() {
    let server = Minimal::start();
    let (mut a, mut b) = (server.client(), server.client());
    a.send_json(json!({"type": "connect", "id": "A"}));
    assert_eq!(a.receive_json(), json!({"type": "offer"}));
    b.send_json(json!({"type": "connect", "id": "B"}));
    assert_eq!(b.sync(), [] as [Value; 0]);
    a.send_json(json!({"type": "offer", "id": "A", "sdp": 1}));
    a.send_json(json!({"type": "offer", "id": "A", "sdp": 2}));
    assert_eq!(a.receive_json(), error("not_offerer", None));
    assert_eq!(b.sync(), [json!({"type": "offer", "sdp": "1", "target_id": "A"})]);
}

#[test]
fn stored_candidates_are_limited() {
    let server = Minimal::start();
    let mut client = server.client();
    let candidate = "x".repeat(30_000);
    let message = json!({"type": "candidateAdd", "id": "A", "candidate": candidate});
    client.send_json(json!({"type": "connect", "id": "A"}));
    assert_eq!(client.receive_json(), json!({"type": "offer"}));
    client.send_json(message.clone());
    client.send_json(message.clone());
    assert_eq!(client.sync(), [] as [Value; 0]);
    client.send_json(message);
    assert_eq!(client.receive_json(), error("too_many", None));
}

#[test]
fn random_messages_never_end_the_server() {
    const IDS: [&str; 6] = ["A", "B", "C", "D", "E", "F"];
    const TYPES: [&str; 8] =
        ["connect", "connect", "offer", "answer", "answer", "candidateAdd", "leave", "other"];
    let server = Minimal::start();
    let mut rng = Rng(0x6d69_6e69_6d61_6c21);
    let mut clients = IDS.map(|_| server.client());
    for _ in 0..5000 {
        let n = rng.below(IDS.len() as u64) as usize;
        match rng.below(40) {
            0 => std::mem::replace(&mut clients[n], server.client()).reset(),
            1 => drop(std::mem::replace(&mut clients[n], server.client())),
            _ => {
                let mut message = json!({"type": rng.choose(&TYPES), "id": IDS[n], "sdp": n, "candidate": n});
                if rng.below(2) == 0 {
                    message["target_id"] = (*rng.choose(&IDS)).into();
                }
                clients[n].send_json(message);
            }
        }
        clients[n].sync();
    }
    clients.into_iter().for_each(|mut client| leave(&mut client));
    server.assert_pairs_two_peers();
}

// ---- Connections ----

#[test]
fn binary_message_closes_its_connection() {
    let server = Minimal::start();
    let mut client = server.client();
    client.send(&frame(BINARY, br#"{"type":"connect","id":"A"}"#));
    assert_eq!(client.read_up_to(1), 0);
    server.assert_pairs_two_peers();
}

#[test]
fn too_large_message_closes_only_its_own_connection() {
    let server = Minimal::start();
    let mut client = server.client();
    let mut partner = server.client();
    pair(&mut client, "A", &mut partner, "B");
    // The server closes before it has read everything.
    let _ = client.try_send(&plain_frame(TEXT, &vec![b' '; 70_000]));
    assert_eq!(partner.receive_json(), json!({"type": "peerLeft", "id": "A"}));
    server.assert_pairs_two_peers();
}

#[test]
fn peer_that_does_not_read_is_disconnected() {
    let server = Minimal::start();
    let (mut stalled, mut sender) = (server.client(), server.client());
    pair(&mut stalled, "stalled", &mut sender, "sender");
    let candidate = "x".repeat(60_000);
    let message = json!({"type": "candidateAdd", "id": "sender", "candidate": candidate});
    let mut received = Vec::new();
    // The kernel buffers some megabytes, the server a quarter of one.
    for _ in 0..1000 {
        sender.send_json(message.clone());
        received = sender.sync();
        if !received.is_empty() {
            break;
        }
    }
    assert_eq!(received, [json!({"type": "peerLeft", "id": "stalled"})]);
    server.assert_pairs_two_peers();
}

#[test]
fn peer_that_pings_and_does_not_read_costs_no_memory() {
    let server = Minimal::start();
    let mut client = server.registered("A");
    let (before, _) = server.running.memory();
    let pings = frame(crate::common::pipe::PING, &[0; 125]).repeat(1000);
    for _ in 0..200 {
        client.send(&pings);
    }
    server.assert_pairs_two_peers();
    let (_, peak) = server.running.memory();
    assert!(peak < before + 4_000_000, "{before} {peak}");
}

#[test]
fn handshake_that_never_ends_is_closed() {
    let server = Minimal::start();
    let mut silent = Client::connect(server.address());
    let mut slow = Client::connect(server.address());
    slow.send(b"GET /ws HTTP/1.1\r\nHost: h\r\n");
    server.assert_pairs_two_peers();
    assert_eq!(silent.read_up_to(1), 0);
    assert_eq!(slow.read_up_to(1), 0);
    server.assert_pairs_two_peers();
}

#[test]
fn request_that_is_no_upgrade_is_closed() {
    let server = Minimal::start();
    for request in ["GET / HTTP/1.1\r\nHost: h\r\n\r\n", "\x16\x03\x01\x02\0\x01\0\r\n\r\n"] {
        let mut client = Client::connect(server.address());
        client.send(request.as_bytes());
        assert_eq!(client.read_up_to(1), 0);
    }
    server.assert_pairs_two_peers();
}

#[test]
fn reset_connection_is_a_peer_that_left() {
    let server = Minimal::start();
    Client::connect(server.address()).reset();
    let mut handshake = Client::connect(server.address());
    handshake.send(b"GET /ws HTTP");
    handshake.reset();
    let (mut a, mut b) = (server.client(), server.client());
    pair(&mut a, "A", &mut b, "B");
    let message = frame(TEXT, br#"{"type":"candidateAdd","id":"A"}"#);
    a.send(&message[..10]);
    a.reset();
    assert_eq!(b.receive_json(), json!({"type": "peerLeft", "id": "A"}));
    server.assert_pairs_two_peers();
}

#[test]
fn message_is_read_byte_by_byte() {
    let server = Minimal::start();
    let mut client = server.client();
    for byte in frame(TEXT, br#"{"type":"connect","id":"A"}"#) {
        client.send(&[byte]);
    }
    assert_eq!(client.receive_json(), json!({"type": "offer"}));
}

#[test]
fn burst_of_messages_is_handled_in_order() {
    let server = Minimal::start();
    let (mut a, mut b) = (server.client(), server.client());
    pair(&mut a, "A", &mut b, "B");
    // More than one iteration reads.
    let message = |n| json!({"type": "candidateAdd", "id": "A", "candidate": n}).to_string();
    let burst: Vec<u8> = (0..2000).flat_map(|n| plain_frame(TEXT, message(n).as_bytes())).collect();
    a.send(&burst);
    for n in 0..2000 {
        assert_eq!(b.receive_json(), json!({"type": "candidate", "candidate": n.to_string(), "id": "A"}));
    }
}

#[test]
fn endless_message_does_not_delay_other_peers() {
    let server = Minimal::start();
    let flooder = server.client();
    let mut stream = flooder.clone_stream();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            stream.write_all(&frame(TEXT_BEGINS, b"")).unwrap();
            let fragments = frame(CONTINUATION, b"").repeat(10_000);
            while !is_over.load(Ordering::Relaxed) {
                stream.write_all(&fragments).unwrap();
            }
        });
        for _ in 0..10 {
            server.assert_pairs_two_peers();
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn thousand_connections_come_and_go() {
    let server = Minimal::start();
    server.assert_pairs_two_peers();
    let before = server.running.descriptors();
    for round in 0..10 {
        let mut clients = Vec::new();
        for n in 0..100 {
            let mut client = server.client();
            client.send_json(json!({"type": "connect", "id": format!("{round}-{n}")}));
            clients.push(client);
        }
        for (n, mut client) in clients.into_iter().enumerate() {
            match n % 3 {
                0 => client.reset(),
                1 => drop(client),
                _ => {
                    client.sync();
                    client.send(&frame(CLOSE, b""));
                }
            }
        }
    }
    eventually("the sockets are closed", || server.running.descriptors() == before);
    server.assert_pairs_two_peers();
}

// ---- The program ----

#[test]
fn sigint_ends_it() {
    let mut server = Minimal::start();
    server.running.signal(Signal::SIGINT);
    assert_eq!(server.running.code(), None, "the signal ends it, not an exit code");
}

#[test]
fn wrong_address_is_an_error_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let cases = [
        ("localhost", "expected ADDR:PORT, got localhost"),
        ("--help", "expected ADDR:PORT, got --help"),
        (&taken, "Address already in use"),
    ];
    for (argument, expected) in cases {
        let output = Command::new(example("minimal")).arg(argument).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{argument}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(expected) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn load_test_measures_it() {
    let server = Minimal::start();
    let url = format!("ws://{}/ws", server.address());
    for mode in ["relay", "relay --in-flight 16 --payload 5000", "call --one-room", "connect", "churn"] {
        let flags = format!("--url {url} --mode {mode} --pairs 5 --seconds 0.3 --json");
        let output = Command::new(example("load")).args(flags.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{mode}: {output:?}");
    }
    server.assert_pairs_two_peers();
}
