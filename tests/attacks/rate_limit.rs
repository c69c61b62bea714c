//! At the default rate limit continuous senders are closed, memory does not grow, and other peers are unaffected.

use std::io::Write;
use std::thread;
use std::time::Instant;

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, LoadedServer};
use crate::common::pipe::{PING, PONG, TEXT, frame};
use noroshi::limits::{QUEUE_BYTES_MAX_FLOOR, RATE_VIOLATION_TIME_MAX};

/// Returns continuous input: a name, the first bytes and the repeated bytes.
fn floods() -> [(&'static str, Vec<u8>, Vec<u8>); 6] {
    let mut fragments: Vec<u8> =
        br#"{"type":"leave","id":"X"}"#.iter().flat_map(|byte| frame(0x00, &[*byte])).collect();
    fragments[0] = 0x01;
    let last = fragments.len() - frame(0x00, b"}").len();
    fragments[last] = 0x80;
    [
        ("messages", vec![], frame(TEXT, br#"{"type":"leave","id":"X"}"#)),
        ("broken-messages", vec![], frame(TEXT, b"{")),
        ("fragments-without-a-byte", frame(0x01, b""), frame(0x00, b"")),
        ("fragments-of-a-byte", vec![], fragments),
        ("pings", vec![], frame(PING, &[7; 125])),
        ("pongs", vec![], frame(PONG, b"")),
    ]
}

#[test]
fn continuous_senders_are_closed_after_five_seconds() {
    let mut loaded = LoadedServer::start("");
    let flooders = floods().map(|(room, first, again)| {
        let mut client = Client::open(loaded.address(), room).register("X");
        let mut stream = client.clone_stream();
        let began = Instant::now();
        thread::spawn(move || {
            let many = again.repeat(16_000 / again.len());
            let sent = stream.write_all(&first);
            // Until the server has closed the connection.
            while sent.is_ok() && stream.write_all(&many).is_ok() {}
        });
        thread::spawn(move || {
            let code = client.receive_close();
            (room, code, began.elapsed())
        })
    });
    loaded.wait_for_metric("closings_total{reason=\"rate_limited\"}", flooders.len());
    for flooder in flooders {
        let (room, code, after) = flooder.join().unwrap();
        assert_eq!(code, 1008, "{room}");
        assert!(after >= RATE_VIOLATION_TIME_MAX, "{room}: closed after {after:?}");
    }
    assert!(
        loaded.server.metric("errors_total{code=\"rate_limited\"}") > 1000.0,
        "what is too much is counted"
    );
    loaded.wait_for_metric("connections", 2);
    loaded.finish(BASELINE_BYTES + 6 * QUEUE_BYTES_MAX_FLOOR);
}
