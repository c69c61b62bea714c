//! A protocol is registered by its descriptor alone: one that is defined here has a flag, a variable, a help text, routes,
//! a health path, resources, metrics and a listing of rooms.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use noroshi::config::{Command, Config, Endpoint};
use noroshi::http::ListenerKind;
use noroshi::http::origin::AllowedOrigin;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets};
use noroshi::message;
use noroshi::metrics::Counts;
use noroshi::protocol::{
    Conn, Context, Descriptor, Member, Protocol, Resource, ResourceRequest, Route, Target, TokenPlace,
};
use noroshi::protocols::{self, noroshi as own_protocol};
use serde_json::json;
use tungstenite::Message;

use super::metrics::metrics;
use super::rooms;
use crate::common::sockets::Net;
use crate::common::transcript::{Received, SECRET, Transport};

/// Rooms that a connection enters by messages: it is in several at a time.
static TOY: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "toy-rooms",
        title: "Toy rooms",
        default_path: "/toy",
        is_always_on: false,
        has_rooms_below: false,
        ignores_path_below: false,
        may_be_root: false,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: Some("/toy-health"),
        stored_bytes_max: 0,
    },
    token_place: TokenPlace::Request,
    route,
    new: |_, _| Box::new(Toy { rooms: BTreeMap::new(), counts: Counts::zero(&["say"], &["unknown"]) }),
};

fn route(below: Option<&str>, _: &Query) -> Route {
    match below {
        None => Route::Room(String::new()),
        Some("sizes") => Route::Resource,
        Some("full") => Route::Invalid("expected another room"),
        Some(_) => Route::Unknown,
    }
}

struct Toy {
    /// The rooms of each connection, in the order in which it entered them.
    rooms: BTreeMap<Conn, Vec<String>>,
    counts: Counts,
}

impl Protocol for Toy {
    fn on_connect(&mut self, conn: Conn, _: &Target, _: Option<&Claims>, context: &mut Context) {
        self.rooms.insert(conn, Vec::new());
        context.registered(conn, "", "toy");
    }

    /// `enter ROOM`, or `say ROOM TEXT`, which everybody in the room receives.
    fn on_message(&mut self, conn: Conn, message: message::Message<'_>, context: &mut Context) {
        let text = message.text().unwrap_or_default();
        let words: Vec<&str> = text.splitn(3, ' ').collect();
        match words.as_slice() {
            ["enter", room] => self.rooms.get_mut(&conn).unwrap().push((*room).to_owned()),
            ["say", room, text] => {
                self.counts.count_message("say");
                for (to, rooms) in &self.rooms {
                    if rooms.iter().any(|entered| entered == room) {
                        context.forward(*to, [format!("{room}: {text}")]);
                    }
                }
            }
            _ => self.counts.count_error("unknown"),
        }
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {}

    fn on_disconnect(&mut self, conn: Conn, _: &mut Context) {
        self.rooms.remove(&conn);
    }

    fn respond(&mut self, request: ResourceRequest<'_>) -> Option<Resource> {
        let room = request.query.values("room").next()?.ok()?;
        let size = self.rooms.values().filter(|rooms| rooms.contains(&room)).count();
        let status = if room == "secret" { 401 } else { 200 };
        Some(Resource { status, content_type: "application/json", body: size.to_string() })
    }

    fn member(&self, conn: Conn) -> Option<Member<'_>> {
        let rooms = self.rooms.get(&conn)?;
        Some(member(rooms.first().map_or("", String::as_str)))
    }

    fn members(&self, conn: Conn) -> Vec<Member<'_>> {
        let rooms = self.rooms.get(&conn);
        rooms.into_iter().flatten().map(|room| member(room)).collect()
    }

    fn counts(&self, _: Duration) -> Counts {
        Counts { peers: self.rooms.len(), ..self.counts.clone() }
    }
}

fn member(room: &str) -> Member<'_> {
    Member { room, id: Some("toy".into()), state: "entered" }
}

const PROTOCOLS: [&Descriptor; 2] = [&own_protocol::DESCRIPTOR, &TOY];

fn parse(variables: &[(&str, &str)], args: &[&str]) -> Result<Config, String> {
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let args = args.iter().map(OsString::from);
    match Config::parse_with_environment(&protocols::endpoints(&PROTOCOLS), variables, args) {
        Ok(Command::Run(config)) => Ok(config),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn serve(mut config: Config) -> Net {
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    Net::with_protocols(&PROTOCOLS, &config)
}

#[test]
fn descriptor_gives_flag_variable_and_help() {
    let toy = &TOY.endpoint;
    assert_eq!(parse(&[], &[]).unwrap().path_of(toy), None);
    assert_eq!(parse(&[], &["--toy-rooms"]).unwrap().path_of(toy), Some("/toy"));
    assert_eq!(parse(&[], &["--toy-rooms=/a"]).unwrap().path_of(toy), Some("/a"));
    assert_eq!(parse(&[("NOROSHI_TOY_ROOMS", "yes")], &[]).unwrap().path_of(toy), Some("/toy"));
    assert_eq!(parse(&[("NOROSHI_TOY_ROOMS", "/b")], &[]).unwrap().path_of(toy), Some("/b"));
    for (path, expected) in [
        ("/ws/x", "that the server does not use itself (it uses /ws)"),
        ("/toy-health", "that the server does not use itself (it uses /toy-health)"),
        ("/", "that the server does not use itself (it uses /)"),
        ("toy", "of A-Z a-z 0-9 . _ ~ - and /, without a slash at its end"),
    ] {
        let error = parse(&[], &[&format!("--toy-rooms={path}")]).unwrap_err();
        assert!(error.starts_with("--toy-rooms: expected a path such as /signaling"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let help = Config::help(&protocols::endpoints(&PROTOCOLS));
    let line =
        "      --toy-rooms[=PATH]     also serve Toy rooms's protocol, at PATH or at /toy [default: off]\n";
    assert!(help.contains(line), "{help}");
    assert!(!help.contains("--ayame") && !help.contains("--noroshi"));
}

#[test]
fn descriptor_gives_routes_health_resources_metrics_and_rooms() {
    let mut config = parse(&[], &["--toy-rooms"]).unwrap();
    config.allow_origins = vec![AllowedOrigin::parse("https://a.example").unwrap()];
    let mut net = serve(config);
    for peer in ["A", "B"] {
        net.open_at(peer, "/toy");
    }
    for message in ["enter tea", "enter milk"] {
        net.send("A", Message::text(message));
    }
    net.send("B", Message::text("enter tea"));
    net.send("B", Message::text("say tea hello"));
    for peer in ["A", "B"] {
        assert_eq!(net.next_received(peer), Some(Received::Text("tea: hello".to_owned())));
    }
    net.send("B", Message::text("what"));

    let (page, _) = rooms::ask_rooms(&mut net, "");
    let mut listed = BTreeMap::new();
    for room in page["rooms"].as_array().unwrap() {
        assert_eq!(room["protocol"], "toy-rooms");
        listed.insert(room["room"].as_str().unwrap(), room["members"].as_array().unwrap().len());
    }
    assert_eq!(listed, BTreeMap::from([("milk", 1), ("tea", 2)]));

    let samples = metrics(&mut net);
    assert_eq!(samples["noroshi_peers{protocol=\"toy-rooms\"}"], 2.0);
    assert_eq!(samples["noroshi_messages_total{protocol=\"toy-rooms\",type=\"say\"}"], 1.0);
    assert_eq!(samples["noroshi_errors_total{protocol=\"toy-rooms\",code=\"unknown\"}"], 1.0);

    let mut get = |request: &str, header: &str| {
        net.request(ListenerKind::Main, &format!("{request} HTTP/1.1\r\nHost: h\r\n{header}\r\n"))
    };
    assert!(get("GET /toy-health", "").starts_with("HTTP/1.1 200 "));
    let response = get("GET /toy/sizes?room=tea", "Origin: https://a.example\r\n");
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\n2"), "{response}");
    assert!(response.contains("\r\nContent-Type: application/json\r\n"), "{response}");
    assert!(response.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"), "{response}");
    let response = get("HEAD /toy/sizes?room=milk", "Origin: https://a.example\r\n");
    assert!(response.contains("\r\nContent-Length: 1\r\n") && response.ends_with("\r\n\r\n"), "{response}");
    // Every response to an allowed page is readable, also an error.
    for (request, status) in [
        ("GET /toy/sizes?room=secret", 401),
        ("GET /toy/sizes", 404),
        ("POST /toy/sizes", 405),
        ("OPTIONS /toy/sizes", 204),
    ] {
        let response = get(request, "Origin: https://a.example\r\n");
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
        assert!(response.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"), "{response}");
        assert!(response.contains("\r\nVary: Origin\r\n"), "{response}");
        assert_eq!(response.contains("\r\nWWW-Authenticate: Bearer\r\n"), status == 401, "{response}");
    }
    for (request, header, status) in [
        ("GET /toy/sizes", "", 404),
        ("POST /toy/sizes?room=tea", "", 405),
        ("GET /toy/sizes?room=tea", "Upgrade: websocket\r\n", 404),
        ("GET /toy/other", "", 404),
        ("GET /toy/full", "", 400),
        ("GET /toy", "", 426),
        ("GET /toy", "Origin: https://b.example\r\n", 403),
        ("HEAD /toy/sizes?room=tea", "Origin: https://b.example\r\n", 403),
        ("OPTIONS /toy/sizes?room=tea", "Origin: https://b.example\r\n", 403),
        ("OPTIONS /toy", "Origin: https://b.example\r\n", 204),
    ] {
        let response = get(request, header);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
    }
}

#[test]
fn descriptor_gives_token_rule() {
    let mut config = parse(&[], &["--toy-rooms"]).unwrap();
    let secrets = Secrets::parse(SECRET).unwrap();
    let expires_at = Duration::from_secs(4_000_000_000);
    let token = secrets.sign(&Claims { expires_at, ..Claims::default() });
    config.token_secrets = Some(secrets);
    let mut net = serve(config);
    assert_eq!(net.status("/toy", true), Some(401));
    net.websocket_at(&format!("/toy?token={token}"));
}

#[test]
fn protocol_of_descriptor_is_off_without_its_flag() {
    let mut net = serve(parse(&[], &[]).unwrap());
    for path in ["/toy", "/toy/sizes?room=tea", "/toy-health"] {
        assert_eq!(net.status(path, false), Some(404), "{path}");
    }
    let samples = metrics(&mut net);
    assert!(!samples.keys().any(|name| name.contains("toy-rooms")));
    assert_eq!(json!(rooms::ask_rooms(&mut net, "").0["rooms"]), json!([]));
}
