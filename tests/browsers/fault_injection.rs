//! Chromium and Firefox in one room and in one pair while WebSockets are cut continuously, chunks are delayed, and
//! tracks, members and connections come and go. After the faults stop, everything recovers soon.
//!
//! Each storm has a seed, and the next storm has the next one. `TEST_SEED` is the first seed, and `TEST_STORMS` the number
//! of storms in a row, in the same browsers. A failure prints the trace of every message of its storm.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::CHROMIUM;
use crate::common::fault_proxy::{FaultProxy, random};
use crate::common::firefox::FIREFOX;
use crate::common::process::run as start_server;
use crate::library_page::{ANY_ORIGIN, chromium, firefox, run};
use serde_json::{Value, json};

/// The duration of the faults of one storm.
const STORM: Duration = Duration::from_secs(8);

/// The time until everything is well after a storm. A pause between attempts to reach the server is 3 s at most.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// The time until everything was well before a storm, and until messages arrive after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Functions of the page.
const STORM_HELPERS: &str = r#"
    const trace = [];
    // The parts of a description by which it can be recognized: its number, and the media with their directions.
    const summary = (sdp) => {
        const media = sdp.split(/^m=/m).slice(1).map((section) => {
            const direction = /^a=(sendrecv|sendonly|recvonly|inactive)/m.exec(section)?.[1] ?? "";
            return `${section.split(" ")[0]} ${direction}`.trim();
        });
        return `${/^o=\S+ (\S+ \S+)/m.exec(sdp)?.[1]}: ${media.join(", ")}, ${sdp.match(/^a=candidate/gm)?.length ?? 0} candidates`;
    };
    const shorten = (key, value) => {
        if (key !== "sdp" || typeof value !== "string") return value;
        return value.startsWith("v=") ? summary(value) : JSON.stringify(JSON.parse(value), shorten);
    };
    const record = (id, what, text) => {
        const content = text === undefined ? "" : JSON.stringify(JSON.parse(text), shorten);
        trace.push([Date.now(), `${id} ${what} ${content}`]);
    };
    // Implementations that record all messages of a room.
    const recording = (id) => ({
        WebSocket: class extends WebSocket {
            constructor(url) {
                super(url);
                this.addEventListener("open", () => record(id, "socket opens"));
                this.addEventListener("close", ({ code }) => record(id, `socket closes with ${code}`));
                this.addEventListener("message", ({ data }) => record(id, "<- server:", data));
            }
            send(text) {
                record(id, "-> server:", text);
                super.send(text);
            }
        },
        RTCPeerConnection: class extends RTCPeerConnection {
            #name = `${id}${globalThis.connectionCount = (globalThis.connectionCount ?? 0) + 1}`;
            constructor(configuration) {
                super(configuration);
                this.addEventListener("connectionstatechange", () => record(this.#name, `is ${this.connectionState}`));
                this.addEventListener("signalingstatechange", () => record(this.#name, `is ${this.signalingState}`));
            }
            createDataChannel(label, options) {
                const channel = super.createDataChannel(label, options);
                channel.addEventListener("open", () => record(this.#name, `${label} opens`));
                channel.addEventListener("close", () => record(this.#name, `${label} closes`));
                if (label === "noroshi-control") {
                    // Control messages are sent in frames, whose first character tells whether the message continues.
                    const frames = { in: "", out: "" };
                    const recordFrame = (direction, frame) => {
                        frames[direction] += frame.slice(1);
                        if (frame[0] === ".") {
                            record(this.#name, direction === "in" ? "<- control:" : "-> control:", frames[direction]);
                            frames[direction] = "";
                        }
                    };
                    channel.addEventListener("message", ({ data }) => recordFrame("in", data));
                    const send = channel.send.bind(channel);
                    channel.send = (frame) => {
                        recordFrame("out", frame);
                        send(frame);
                    };
                }
                return channel;
            }
        },
    });
    const shares = {};
    const members = new Set();
    Object.assign(globalThis, {
        trace,
        // Enters, again if the server is cut off in this moment.
        member: async (id, url, flow) => {
            members.add(id);
            for (;;) {
                try {
                    const room = await (flow === "join" ? join : connect)(url, { id, ...recording(id) });
                    const add = room.dispatchEvent;
                    room.dispatchEvent = function (event) {
                        if (event.type !== "progress") {
                            record(id, `event ${event.type} ${nameOf(event)} ${event.code ?? ""} ${event.error?.message ?? ""}`);
                        }
                        return add.call(this, event);
                    };
                    watch(room);
                    shares[id] = [];
                    return;
                } catch (error) {
                    record(id, `cannot enter: ${error.code} ${error.message}`);
                    await new Promise((resolve) => setTimeout(resolve, 200));
                }
            }
        },
        act: (id, action, url, flow) => {
            const room = rooms[id];
            record(id, action);
            if (action === "share") {
                shares[id].push(room.share(sound()));
            } else if (action === "stop") {
                shares[id].shift()?.stop();
            } else if (action === "return") {
                room.leave();
                delete rooms[id];
                member(id, url, flow);
            } else {
                const [peer] = room.peers.values();
                peer?.pc.close();
            }
        },
        // Who is how, for the test: `well` if a room lacks nothing that it knows of.
        report: (others) => [...members].map((id) => {
            const room = rooms[id];
            if (!room) return { id, well: false, sent: 0, received: {}, states: "entering" };
            const peers = [...room.peers.values()];
            return {
                id,
                well: room.online && peers.length === others && peers.every(isSettled),
                sent: shares[id].length,
                received: Object.fromEntries(peers.map((peer) => [peer.id, receives(peer, "audio")])),
                states: `${room.state}: ${peers.map((it) => `${it.id} ${it.state}${it.away ? " away" : ""} ${it.pc.signalingState}`)}`,
            };
        }),
        endStorm: () => {
            Object.values(rooms).forEach((room) => room.leave());
            for (const record of [rooms, received, events, shares]) {
                for (const id of Object.keys(record)) delete record[id];
            }
            members.clear();
            trace.length = 0;
            errors.length = 0;
        },
    });"#;

/// What happens in storms besides cuts and delays.
#[derive(Clone, Copy, PartialEq)]
enum Changes {
    /// Tracks come and go.
    Tracks,
    /// Members leave and return, too, and applications close connections.
    Members,
}

/// A page, and the ids of its rooms.
type Page<'a> = (&'a mut dyn Browser, &'a [&'a str]);

/// Runs storms over these rooms of two pages.
fn run_storms(flow: &str, ids: [&[&str]; 2], changes: Changes) {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let first = number("TEST_SEED", 1);
    let storms = number("TEST_STORMS", 2);
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let (mut chromium, mut firefox) = (chromium(&server), firefox(&server));
    let mut pages: [Page; 2] = [(&mut chromium, ids[0]), (&mut firefox, ids[1])];
    for (page, _) in &mut pages {
        run(*page, STORM_HELPERS);
    }
    let mut failures = Vec::new();
    let mut errors = 0;
    for seed in first..first + storms {
        let proxy = FaultProxy::new(server.address);
        let url = format!("ws://{}/ws/storm-{seed}", proxy.address);
        let result = run_storm(&mut pages, &proxy, &url, flow, changes, seed);
        let all_errors: Vec<Value> = pages.iter_mut().map(|(page, _)| page.eval("errors")).collect();
        let count: usize = all_errors.iter().map(|list| list.as_array().unwrap().len()).sum();
        errors += count;
        let result = result.and_then(|recovery| match count {
            0 => Ok(recovery),
            _ => Err(format!("error events: {all_errors:?}")),
        });
        match result {
            Ok(recovery) => println!("TEST_SEED={seed}: well after {:.1} s", recovery.as_secs_f64()),
            Err(error) => {
                println!("TEST_SEED={seed} FAILED: {error}");
                print_trace(&mut pages);
                failures.push(seed);
            }
        }
        for (page, _) in &mut pages {
            page.eval("endStorm()");
            assert_eq!(page.eval("rejected"), json!([]));
            page.assert_no_errors();
        }
    }
    println!("{storms} storms, {} failures, {errors} error events", failures.len());
    assert!(failures.is_empty(), "storms failed: {failures:?}");
}

/// Runs one storm. Returns how long the recovery took, or what is wrong.
fn run_storm(
    pages: &mut [Page; 2],
    proxy: &FaultProxy,
    url: &str,
    flow: &str,
    changes: Changes,
    mut seed: u64,
) -> Result<Duration, String> {
    let others = pages.iter().map(|(_, ids)| ids.len()).sum::<usize>() - 1;
    for (page, ids) in &mut *pages {
        run(*page, &format!("for (const id of {}) await member(id, '{url}', '{flow}');", json!(ids)));
    }
    wait_until_well(pages, others, PATIENCE).map_err(|error| format!("before the storm: {error}"))?;
    for (page, _) in &mut *pages {
        page.eval("Object.keys(events).forEach((id) => events[id] = [])");
    }

    proxy.start_faults(seed);
    let began = Instant::now();
    while began.elapsed() < STORM {
        let (page, ids) = &mut pages[random(&mut seed, 0..2) as usize];
        let id = ids[random(&mut seed, 0..ids.len() as u64) as usize];
        let action = match random(&mut seed, 0..20) {
            0 if changes == Changes::Members => "return",
            1 if changes == Changes::Members => "close",
            number if number % 2 == 0 => "share",
            _ => "stop",
        };
        page.eval(&format!("rooms.{id} ? act('{id}', '{action}', '{url}', '{flow}') : 0"));
        sleep(Duration::from_millis(random(&mut seed, 50..300)));
    }
    proxy.stop_faults();
    let recovery = wait_until_well(pages, others, RECOVERY_MAX)?;

    // Every page receives the messages of every other page.
    for (page, _) in &mut *pages {
        let reached = page.eval("Object.values(rooms).map((room) => room.send('is here').length)");
        if reached.as_array().unwrap().iter().any(|count| *count != others) {
            return Err(format!("messages reach {reached} peers"));
        }
    }
    let began = Instant::now();
    for (page, _) in &mut *pages {
        let senders = "new Set(received[id].filter((it) => it.endsWith('is here'))).size";
        while page.eval(&format!("Object.keys(rooms).every((id) => {senders} === {others})")) != true {
            if began.elapsed() > PATIENCE {
                return Err(format!("a message is missing: {}", page.eval("received")));
            }
            sleep(Duration::from_millis(20));
        }
    }
    if changes == Changes::Tracks {
        // The direct connections are not concerned by what happens to the server.
        for (page, _) in &mut *pages {
            let found =
                page.eval("Object.values(events).flat().filter((it) => !/^(offline|online)$/.test(it))");
            if found != json!([]) {
                return Err(format!("connections were disturbed: {found}"));
            }
        }
    }
    Ok(recovery)
}

/// Waits until all rooms are online and connected to each other, and have each other's tracks.
fn wait_until_well(pages: &mut [Page; 2], others: usize, patience: Duration) -> Result<Duration, String> {
    let began = Instant::now();
    loop {
        let reports: Vec<Value> = pages
            .iter_mut()
            .flat_map(|(page, _)| page.eval(&format!("report({others})")).as_array().unwrap().clone())
            .collect();
        let is_well = reports.iter().all(|report| {
            let id = report["id"].as_str().unwrap();
            let others_receive = reports
                .iter()
                .filter(|other| other["id"] != id)
                .all(|other| other["received"][id] == report["sent"]);
            report["well"] == true && others_receive
        });
        if is_well {
            return Ok(began.elapsed());
        }
        if began.elapsed() > patience {
            return Err(format!("not well after {} s: {reports:#?}", patience.as_secs()));
        }
        sleep(Duration::from_millis(50));
    }
}

/// Prints what all rooms have sent and received, in order of time.
fn print_trace(pages: &mut [Page; 2]) {
    let mut lines: Vec<(i64, String)> = Vec::new();
    for (page, _) in pages {
        for line in page.eval("trace").as_array().unwrap() {
            lines.push((line[0].as_i64().unwrap(), line[1].as_str().unwrap().to_owned()));
        }
    }
    lines.sort_by_key(|(time, _)| *time);
    let Some(&(first, _)) = lines.first() else { return };
    for (time, line) in &lines {
        println!("{:8.3} {line}", (time - first) as f64 / 1000.0);
    }
}

#[test]
fn room_of_four_recovers_from_faults() {
    run_storms("join", [&["A", "C"], &["B", "D"]], Changes::Tracks);
}

#[test]
fn pair_recovers_from_faults() {
    run_storms("connect", [&["A"], &["B"]], Changes::Tracks);
}

#[test]
fn room_of_four_recovers_from_faults_while_members_come_and_go() {
    run_storms("join", [&["A", "C"], &["B", "D"]], Changes::Members);
}

#[test]
fn pair_recovers_from_faults_while_members_come_and_go() {
    run_storms("connect", [&["A"], &["B"]], Changes::Members);
}
