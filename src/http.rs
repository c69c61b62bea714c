//! The first request of a connection: an upgrade, or a question with a plain answer.
//!
//! No I/O in here: a head goes in, an [`Answer`] comes out. Every answer that is no upgrade is a complete
//! HTTP/1.1 response after which the connection closes (RFC 9112); upgrades follow RFC 6455 section 4.2.

use std::net::IpAddr;
use std::time::Duration;

use tungstenite::handshake::derive_accept_key;

use crate::config::{Config, HEAD_BYTES_MAX, HEADERS_MAX, METHOD_BYTES_MAX, ORIGIN_LOGGED_MAX};
use crate::origin;
use crate::page::{self, File};
use crate::protocol::{Dialect, Target};

mod answer;
mod forwarded;
mod route;
mod token;

pub use answer::{About, Answer, Question, Refusal, told};
use answer::{TEXT, plain, response};
use forwarded::UnreadableAddress;

/// Which listener a connection came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// WebSockets, the pages and the library, and `/healthz`.
    Main,
    /// `/metrics`.
    Metrics,
}

/// Whether there is a place for another WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is.
    Free,
    /// Not in the server.
    Full,
    /// Not for this address.
    Crowded,
    /// Not in this room.
    NoRoom,
    /// Not for a new room: the server is about to stop.
    Draining,
}

/// The statuses with which an upgrade may be refused.
pub const REFUSALS: [u16; 9] = [400, 401, 403, 404, 405, 426, 429, 431, 503];

/// Where the head ends that these bytes begin with, if it does. `searched` bytes of them are known to hold no end.
pub fn head_end(bytes: &[u8], searched: usize) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    let from = searched.saturating_sub(END.len() - 1);
    bytes[from..].windows(END.len()).position(|window| window == END).map(|at| from + at + END.len())
}

/// Whether no request begins with these bytes: with a method, which is a token, and a space (RFC 9112 sections 2.2 and
/// 3). Who speaks TLS or SSH here is told so at once, and not when the time for the head is over.
pub fn is_impossible(bytes: &[u8]) -> bool {
    let begin = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
    let line = &bytes[begin..];
    let is_token = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = line.iter().take(METHOD_BYTES_MAX + 1).take_while(is_token).count();
    method > METHOD_BYTES_MAX || line.get(method).is_some_and(|byte| *byte != b' ' || method == 0)
}

/// The answer to a head of which only this much came in time.
pub fn timeout(head: &[u8]) -> Answer {
    early(408, "the request did not come in time", head)
}

/// The answer to a head that begins with this and is larger than [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
pub fn head_too_large(head: &[u8]) -> Answer {
    let sentence =
        format!("the head of a request is at most {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} headers");
    early(431, &sentence, head)
}

/// The answer to a head of which only this much can be kept.
pub fn no_memory(head: &[u8]) -> Answer {
    early(503, "the server's memory is used up", head)
}

/// The answer to what is no head.
pub fn malformed(head: &[u8]) -> Answer {
    early(400, "that is no HTTP request", head)
}

/// The answer to a head that is not understood: whether it was for a WebSocket, and wants a body (RFC 9110 section
/// 9.3.2), is known as far as can be told.
fn early(status: u16, sentence: &str, head: &[u8]) -> Answer {
    let mut answer = plain(status, sentence, &[], head.starts_with(b"HEAD "));
    if let Answer::Plain { refused, .. } = &mut answer {
        let is_upgrade = head.windows(9).any(|window| window.eq_ignore_ascii_case(b"websocket"));
        refused.take_if(|_| !is_upgrade);
    }
    answer
}

fn has_bare_line_feed(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r"))
}

/// The answer to a request. Whether there is a place for it may depend on where it says that it comes from, which is
/// asked only of what a trusted proxy sends, and on what it asks for. `wall` is the time since 1970.
pub fn answer(
    head: &[u8],
    door: Door,
    config: &Config,
    is_trusted: bool,
    wall: Duration,
    place: impl FnOnce(Option<IpAddr>, Option<&Target>) -> Place,
) -> Answer {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        // Whether a bare line feed ends a line, and so what the headers are, others may read otherwise.
        Ok(httparse::Status::Complete(_)) if !has_bare_line_feed(head) => {}
        Err(httparse::Error::TooManyHeaders) => return head_too_large(head),
        Ok(_) | Err(_) => return malformed(head),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return malformed(head);
    };
    let request = Request { method, version, headers: parsed.headers };
    let hosts = request.values("host").count();
    if hosts > 1 || (hosts == 0 && version == 1) {
        // RFC 9112 section 3.2.
        return request.plain(400, "a request has one Host header", &[]);
    }
    let is_upgrade = request.lists("upgrade", "websocket");
    let (path, query) = route::path_and_query(target);
    let route = if door == Door::Main { route::target(path, query, is_upgrade, config) } else { None };
    let client_address = match is_trusted.then(|| request.client_address(config)).transpose() {
        Ok(address) => address.flatten(),
        Err(unreadable) => return request.unreadable_address(&unreadable, is_upgrade),
    };
    let place = place(client_address, route.as_ref().and_then(|route| route.as_ref().ok()));
    if method == "OPTIONS" {
        // HAProxy asks so whether somebody is there.
        return response(204, b"", &[ALLOW], true);
    }
    let mut answer = match (door, path) {
        (Door::Metrics, "/metrics") => request.ask(About::Metrics),
        (Door::Metrics, "/rooms") => match route::rooms(query) {
            Some(about) => request.ask(about),
            None => request.plain(400, "ask for /rooms?room=ROOM&after=NEXT, or without one of these", &[]),
        },
        (Door::Main, path) if route::is_health(path, config) => match place {
            Place::Draining => request.page(503, "draining", &[TEXT]),
            _ => request.page(200, "ok", &[TEXT]),
        },
        (Door::Main, path) => match (route, path) {
            (Some(route), _) => request.upgrade(route, config, place, wall),
            (None, path) => match page::at(path).filter(|_| config.page) {
                Some(file) => request.file(file, config),
                None => request.plain(404, "nothing is here; WebSockets connect to /ws or /ws/ROOM", &[]),
            },
        },
        (Door::Metrics, _) => request.plain(404, "nothing is here; see /metrics and /rooms", &[]),
    };
    if let Answer::Plain { refused, .. } = &mut answer {
        refused.take_if(|_| door == Door::Metrics || !is_upgrade);
    }
    answer
}

const ALLOW: (&str, &str) = ("Allow", "GET, HEAD, OPTIONS");

struct Request<'a> {
    method: &'a str,
    /// The minor version: HTTP/1.0 or HTTP/1.1.
    version: u8,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> Request<'a> {
    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    }

    /// The only value of a header, as text.
    fn value(&self, name: &str) -> Option<&'a str> {
        std::str::from_utf8(self.only_value(name)?).ok()
    }

    /// The value of a header that the request has once.
    fn only_value(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.values(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)
    }

    /// All values of a header, for the log. Not escaped.
    fn joined_values(&self, name: &str) -> String {
        let values: Vec<_> = self.values(name).map(String::from_utf8_lossy).collect();
        values.join(", ")
    }

    /// Whether a header that is a list has this element.
    fn lists(&self, name: &str, element: &str) -> bool {
        let is_it = |listed: &[u8]| listed.trim_ascii().eq_ignore_ascii_case(element.as_bytes());
        self.values(name).any(|value| value.split(|byte| *byte == b',').any(is_it))
    }

    fn page(&self, status: u16, body: &str, headers: &[(&str, &str)]) -> Answer {
        self.read(|head_only| response(status, body.as_bytes(), headers, head_only))
    }

    fn ask(&self, about: About) -> Answer {
        self.read(|head_only| Answer::Ask(Question { about, head_only }))
    }

    /// The answer to who only wants to read.
    fn read(&self, answer: impl FnOnce(bool) -> Answer) -> Answer {
        match self.method {
            "GET" | "HEAD" => answer(self.method == "HEAD"),
            _ => self.plain(405, "only GET, HEAD and OPTIONS are answered here", &[ALLOW]),
        }
    }

    /// A file, which a browser may keep if it asks each time whether it is still the same.
    fn file(&self, file: &File, config: &Config) -> Answer {
        let etag = file.etag();
        let mut headers = vec![
            ("Content-Type", file.kind),
            ("Cache-Control", "no-cache"),
            ("ETag", &etag),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ];
        headers.extend(file.policy.map(|policy| ("Content-Security-Policy", policy)));
        if file.is_shared {
            headers.push(("Vary", "Origin"));
            headers.extend(self.shared_with_its_origin().filter(|_| self.may_come_from_its_origin(config)));
        }
        // RFC 9110 section 13.1.2: compared weakly.
        let known = [&etag, &format!("W/{etag}"), "*"];
        let is_known = known.iter().any(|tag| self.lists("if-none-match", tag));
        self.page(if is_known { 304 } else { 200 }, file.body, &headers)
    }

    /// Lets the page that asks, which may connect, see the answer.
    fn shared_with_its_origin(&self) -> Option<(&'static str, &'a str)> {
        self.value("origin").map(|origin| ("Access-Control-Allow-Origin", origin))
    }

    fn plain(&self, status: u16, sentence: &str, headers: &[(&str, &str)]) -> Answer {
        plain(status, sentence, headers, self.method == "HEAD")
    }

    fn upgrade(
        &self,
        route: Result<Target, &'static str>,
        config: &Config,
        place: Place,
        wall: Duration,
    ) -> Answer {
        if !matches!(self.method, "GET" | "HEAD") {
            return self.plain(405, "a WebSocket begins with GET", &[ALLOW]);
        }
        let target = match route {
            Ok(target) => target,
            Err(sentence) => return self.plain(400, sentence, &[]),
        };
        if !self.may_come_from_its_origin(config) {
            return self.foreign();
        }
        // Before the rest: a browser does not say how an upgrade was refused, but shows the answer to a plain request.
        let claims = match &config.token_secrets {
            // An Ayame client says its token, and its room, in its first message.
            Some(_) if target.dialect == Dialect::Ayame => None,
            None => None,
            Some(secrets) => match self.claims(&target, secrets, wall) {
                Ok(claims) => Some(claims),
                Err(fault) => return self.unauthorized(fault),
            },
        };
        let asks = self.method == "GET"
            && self.version == 1
            && self.lists("upgrade", "websocket")
            && self.lists("connection", "upgrade");
        if !asks || self.value("sec-websocket-version") != Some("13") {
            let headers = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
            return self.plain(426, "this address speaks WebSocket, version 13", &headers);
        }
        let Some(key) = self.value("sec-websocket-key").filter(|key| is_key(key)) else {
            return self.plain(400, "Sec-WebSocket-Key is missing or malformed", &[]);
        };
        match place {
            Place::Free => {}
            Place::Full => return self.plain(503, "the server is full", &[]),
            Place::Crowded => return self.plain(429, "too many connections from your address", &[]),
            Place::Draining => return self.plain(503, "the server is about to stop; come again", &[]),
            Place::NoRoom => return self.plain(503, "the room is full", &[]),
        }
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        Answer::Upgrade { response: response.into_bytes(), target, claims }
    }

    /// Refuses a request in which a trusted proxy reports no readable client address. The log gets the value, too.
    fn unreadable_address(&self, unreadable: &UnreadableAddress, is_upgrade: bool) -> Answer {
        let UnreadableAddress { header, value } = unreadable;
        let sentence = format!("{header} names no IP address where the client's is expected");
        let mut answer = self.plain(400, &sentence, &[]);
        if let Answer::Plain { refused, .. } = &mut answer {
            let why = format!("{sentence}: {value:?}");
            *refused = is_upgrade.then_some(Refusal { why, fault: None });
        }
        answer
    }

    /// The usual cause is a proxy that does not pass on `Host` as the browser has sent it: the log must let that be seen.
    fn foreign(&self) -> Answer {
        let mut answer = self.plain(403, "pages of this origin may not connect; see --allow-origin", &[]);
        if let Answer::Plain { refused: Some(Refusal { why, .. }), .. } = &mut answer {
            // No line of the log is longer than a writable pipe has room for.
            let text = |name| self.joined_values(name).chars().take(ORIGIN_LOGGED_MAX).collect::<String>();
            *why =
                format!("Origin {:?} is not of Host {:?}; see --allow-origin", text("origin"), text("host"));
        }
        answer
    }

    /// A browser says where the page comes from, so that no page can use the visitor's place in the network.
    /// Other clients say nothing, and could say anything.
    fn may_come_from_its_origin(&self, config: &Config) -> bool {
        if self.values("origin").next().is_none() {
            return true;
        }
        let is_own = |origin| self.value("host").is_some_and(|host| origin::is_same(origin, host));
        let may = |origin| config.allow_origins.iter().any(|allowed| allowed.has(origin)) || is_own(origin);
        self.value("origin").is_some_and(may)
    }
}

/// Whether this is the base64 of 16 bytes.
fn is_key(key: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    key.strip_suffix("==").is_some_and(|digits| digits.len() == 22 && digits.bytes().all(is_fine))
}

#[cfg(test)]
mod tests;
