//! The first request of a connection: an upgrade, or a question with a plain answer.
//!
//! No I/O in here: a head goes in, an [`Answer`] comes out. Every answer that is no upgrade is a complete
//! HTTP/1.1 response after which the connection closes (RFC 9112); upgrades follow RFC 6455 section 4.2.

use std::net::IpAddr;
use std::time::Duration;

use tungstenite::handshake::derive_accept_key;

use crate::config::{Config, HEAD_BYTES_MAX, HEADERS_MAX, METHOD_BYTES_MAX, ORIGIN_LOGGED_MAX};
use crate::origin;
use crate::protocol::{ProtocolId, Target};
use crate::query::Query;
use crate::web::{self, File};

mod answer;
mod forwarded;
mod route;
mod token;

pub use answer::{AdminRequest, AdminTopic, Answer, Refusal, told};
use answer::{TEXT, plain, response};
use forwarded::UnreadableAddress;

/// Which listener a connection came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// WebSockets, the pages and the library, and `/healthz`.
    Main,
    /// `/metrics`, `/rooms`, and `/healthz`.
    Metrics,
}

/// Whether the limits of the server allow another WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
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

const ALLOW: (&str, &str) = ("Allow", "GET, HEAD, OPTIONS");

/// Space for the headers of one request, see [`Request::parse`].
pub type Headers<'a> = [httparse::Header<'a>; HEADERS_MAX];

/// No headers yet.
pub const NO_HEADERS: Headers<'static> = [httparse::EMPTY_HEADER; HEADERS_MAX];

/// A parsed request.
pub struct Request<'a> {
    method: &'a str,
    /// The request target, as it was sent.
    target: &'a str,
    /// The minor version: HTTP/1.0 or HTTP/1.1.
    version: u8,
    headers: &'a [httparse::Header<'a>],
    listener: ListenerKind,
}

/// Where the target of a request leads.
pub struct Route {
    /// The path, normalized.
    path: String,
    query: Query,
    /// The room, if the path is for WebSockets, or why there can be none.
    target: Option<Result<Target, &'static str>>,
}

impl Route {
    /// Returns what a connection would be for, if the path is for WebSockets.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()?.as_ref().ok()
    }
}

impl<'a> Request<'a> {
    /// Parses a complete head that came in at this listener.
    ///
    /// # Errors
    /// The response to a head that is malformed.
    pub fn parse<'h: 'a>(
        head: &'h [u8],
        headers: &'a mut Headers<'h>,
        listener: ListenerKind,
    ) -> Result<Request<'a>, Answer> {
        let mut parsed = httparse::Request::new(headers);
        match parsed.parse(head) {
            // Whether a bare line feed ends a line, and so what the headers are, others may read otherwise.
            Ok(httparse::Status::Complete(_)) if !has_bare_line_feed(head) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(head_too_large(head)),
            Ok(_) | Err(_) => return Err(malformed(head)),
        }
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(malformed(head));
        };
        let request = Request { method, target, version, headers: parsed.headers, listener };
        let hosts = request.values("host").count();
        if hosts > 1 || (hosts == 0 && version == 1) {
            // RFC 9112 section 3.2.
            let response = request.plain(400, "a request has one Host header", &[]);
            return Err(request.without_refusal_if_plain(response));
        }
        Ok(request)
    }

    /// Returns the client address that a trusted proxy reports, if it reports one.
    ///
    /// # Errors
    /// The response to a request in which that address is not readable.
    pub fn reported_address(&self, config: &Config) -> Result<Option<IpAddr>, Answer> {
        self.client_address(config)
            .map_err(|unreadable| self.without_refusal_if_plain(self.unreadable_address(&unreadable)))
    }

    /// Returns where the request target leads.
    pub fn route(&self, config: &Config) -> Route {
        let (path, query) = route::path_and_query(self.target);
        let target = match self.listener {
            ListenerKind::Main => route::target(&path, &query, self.is_attempted_upgrade(), config),
            ListenerKind::Metrics => None,
        };
        Route { path: path.into_owned(), query, target }
    }

    /// Decides what the answer is. `wall` is the time since 1970, for tokens.
    pub fn answer(&self, route: Route, admission: Admission, config: &Config, wall: Duration) -> Answer {
        let answer = self.answer_any(route, admission, config, wall);
        self.without_refusal_if_plain(answer)
    }

    fn answer_any(&self, route: Route, admission: Admission, config: &Config, wall: Duration) -> Answer {
        if self.method == "OPTIONS" {
            // HAProxy checks health by this method.
            return response(204, b"", &[ALLOW], true);
        }
        let Route { path, query, target } = route;
        match (self.listener, target) {
            (ListenerKind::Main, Some(target)) => self.upgrade(target, config, admission, wall),
            // A health check is answered whatever a balancer adds to it.
            (ListenerKind::Main, None) if route::is_health(&path, config) => self.health(admission),
            (ListenerKind::Main, None) if self.is_attempted_upgrade() => self.no_websocket_path(&path),
            (ListenerKind::Main, None) => self.page_at(&path, config),
            // It says nothing that a page of another machine could use.
            (ListenerKind::Metrics, _) if path == "/healthz" => self.health(admission),
            (ListenerKind::Metrics, _) if !self.is_for_metrics(config) => self.unexpected_host(),
            (ListenerKind::Metrics, _) => self.operator(&path, &query),
        }
    }

    /// Removes the reason for the log from the answer to a request that was not for a WebSocket.
    fn without_refusal_if_plain(&self, mut answer: Answer) -> Answer {
        let is_upgrade = self.listener == ListenerKind::Main && self.is_attempted_upgrade();
        if let Answer::Plain { refused, .. } = &mut answer {
            refused.take_if(|_| !is_upgrade);
        }
        answer
    }

    /// Returns whether the client wants a WebSocket: it sends a key, or asks for the upgrade. A proxy that is not prepared
    /// for WebSockets drops `Upgrade`, but not the key.
    fn is_attempted_upgrade(&self) -> bool {
        self.values("sec-websocket-key").next().is_some() || self.lists("upgrade", "websocket")
    }

    /// Answers a plain request for a page.
    fn page_at(&self, path: &str, config: &Config) -> Answer {
        match web::find(path).filter(|_| config.page) {
            Some(file) => self.file(file, config),
            None => self.plain(404, "nothing is here; WebSockets connect to /ws or /ws/ROOM", &[]),
        }
    }

    /// Answers an operator at the metrics listener.
    fn operator(&self, path: &str, query: &Query) -> Answer {
        match path {
            "/metrics" => self.ask(AdminTopic::Metrics),
            "/rooms" => match route::rooms(query) {
                Some(about) => self.ask(about),
                None => self.plain(400, "ask for /rooms?room=ROOM&after=NEXT, or without one of these", &[]),
            },
            _ => self.plain(404, "nothing is here; see /metrics, /rooms and /healthz", &[]),
        }
    }

    /// Returns whether the metrics listener answers a request with this `Host`.
    ///
    /// A page whose name was rebound to the address of this machine (DNS rebinding) sends its name as `Host`. That name
    /// is registered, so it is neither an IP address nor a name of one label. A request without `Host` (HTTP/1.0) comes
    /// from no browser.
    fn is_for_metrics(&self, config: &Config) -> bool {
        match self.only_value("host") {
            Some(host) => {
                std::str::from_utf8(host).is_ok_and(|host| origin::is_local_host(host, &config.metrics_hosts))
            }
            None => true,
        }
    }

    /// Refuses a request at the metrics listener because of its `Host`.
    fn unexpected_host(&self) -> Answer {
        let host: String = self.joined_values("host").chars().take(ORIGIN_LOGGED_MAX).collect();
        let sentence = format!(
            "Host {host:?} is neither an IP address nor a name without dots; --metrics-host NAME allows a name"
        );
        self.plain(403, &sentence, &[])
    }

    /// Refuses an upgrade at a path that is not for WebSockets.
    fn no_websocket_path(&self, path: &str) -> Answer {
        let sentence = if path.starts_with("//") {
            "no WebSocket path, because it begins with two slashes; use /ws or /ws/ROOM"
        } else {
            "no WebSocket path; use /ws or /ws/ROOM"
        };
        self.plain(404, sentence, &[])
    }

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

    /// Says whether the server is well and takes new rooms. A full server is well.
    fn health(&self, admission: Admission) -> Answer {
        match admission {
            Admission::Draining => self.page(503, "draining", &[TEXT]),
            _ => self.page(200, "ok", &[TEXT]),
        }
    }

    fn ask(&self, about: AdminTopic) -> Answer {
        self.read(|head_only| Answer::Ask(AdminRequest { about, head_only }))
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
            ("Content-Type", file.content_type),
            ("Cache-Control", "no-cache"),
            ("ETag", &etag),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ];
        headers.extend(file.csp.map(|policy| ("Content-Security-Policy", policy)));
        if file.is_cross_origin {
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
        admission: Admission,
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
            Some(_) if target.protocol == ProtocolId::Ayame => None,
            None => None,
            Some(secrets) => match self.claims(&target, secrets, wall) {
                Ok(claims) => Some(claims),
                Err(fault) => return self.unauthorized(fault),
            },
        };
        let causes = self.missing_for_upgrade();
        if !causes.is_empty() || self.method != "GET" || self.value("sec-websocket-version") != Some("13") {
            let headers = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
            let causes = causes.join("; ");
            let is_told = self.is_attempted_upgrade() && !causes.is_empty();
            let sentence = if is_told { &causes } else { "this address speaks WebSocket, version 13" };
            return self.plain(426, sentence, &headers);
        }
        let Some(key) = self.value("sec-websocket-key").filter(|key| is_key(key)) else {
            return self.plain(400, "Sec-WebSocket-Key is missing or malformed", &[]);
        };
        match admission {
            Admission::Free => {}
            Admission::Full => return self.plain(503, "the server is full", &[]),
            Admission::Crowded => return self.plain(429, "too many connections from your address", &[]),
            Admission::Draining => return self.plain(503, "the server is about to stop; come again", &[]),
            Admission::NoRoom => return self.plain(503, "the room is full", &[]),
        }
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        Answer::Upgrade { response: response.into_bytes(), target, claims }
    }

    /// Returns what a request lacks to be an upgrade, and the likely cause. Proxies that are not prepared for WebSockets
    /// send HTTP/1.0, or drop the headers that are for one connection only.
    fn missing_for_upgrade(&self) -> Vec<&'static str> {
        let mut causes = Vec::new();
        if self.version == 0 {
            causes.push("HTTP/1.0, but WebSocket needs HTTP/1.1: does nginx lack proxy_http_version 1.1?");
        }
        if self.values("upgrade").next().is_none() {
            causes.push("no Upgrade header: is a proxy dropping it?");
        } else if !self.lists("upgrade", "websocket") {
            causes.push("the Upgrade header is not for websocket");
        } else if !self.lists("connection", "upgrade") {
            causes.push("no Upgrade in the Connection header: is a proxy changing it?");
        }
        causes
    }

    /// Refuses a request in which a trusted proxy reports no readable client address. The log gets the value, too.
    fn unreadable_address(&self, unreadable: &UnreadableAddress) -> Answer {
        let UnreadableAddress { header, value } = unreadable;
        let sentence = format!("{header} names no IP address where the client's is expected");
        let mut answer = self.plain(400, &sentence, &[]);
        if let Answer::Plain { refused: Some(refusal), .. } = &mut answer {
            refusal.why = format!("{sentence}: {value:?}");
        }
        answer
    }

    /// Refuses a page of another origin. The usual cause is a proxy that does not pass on `Host` as the browser sent it:
    /// the answer and the log show both headers, and what else that proxy gets wrong.
    fn foreign(&self) -> Answer {
        // No line of the log is longer than a writable pipe has room for.
        let text = |name| self.joined_values(name).chars().take(ORIGIN_LOGGED_MAX).collect::<String>();
        let (origin, host) = (text("origin"), text("host"));
        let mut sentence = format!("Origin {origin:?} is not of Host {host:?}; see --allow-origin");
        if self.is_attempted_upgrade() {
            for cause in self.missing_for_upgrade() {
                sentence.push_str("; ");
                sentence.push_str(cause);
            }
        }
        self.plain(403, &sentence, &[])
    }

    /// A browser says where the page comes from, so that no page can use the visitor's place in the network.
    /// Other clients say nothing, and could say anything.
    fn may_come_from_its_origin(&self, config: &Config) -> bool {
        if self.values("origin").next().is_none() {
            return true;
        }
        let is_own = |origin| self.value("host").is_some_and(|host| origin::is_same_origin(origin, host));
        let may =
            |origin| config.allow_origins.iter().any(|allowed| allowed.matches(origin)) || is_own(origin);
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
