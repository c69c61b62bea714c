//! HTTP/1.1: parses the first request of a connection and decides on the response.
//!
//! This module does no I/O: a request head goes in, a [`Response`] comes out. Upgrades follow RFC 6455 section 4.2. Every
//! other response is complete, and the connection closes after it (RFC 9112).

use std::net::IpAddr;
use std::time::Duration;

use tungstenite::handshake::derive_accept_key;

use crate::config::{Config, HEAD_BYTES_MAX, HEADERS_MAX, METHOD_BYTES_MAX, ORIGIN_LOGGED_MAX};
use crate::protocol::{ProtocolId, Target};
use crate::web::{self, File};

pub mod address;
mod bearer;
mod forwarded;
pub mod origin;
pub mod paths;
pub mod query;
mod response;
mod route;
pub mod token;

use forwarded::UnreadableAddress;
use query::Query;
pub use response::{AdminRequest, AdminTopic, RejectReason, Response, render_admin_response};
use response::{TEXT, render, render_sentence};

/// The listener that accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Serves WebSockets, the pages, the client library and `/healthz`.
    Main,
    /// Serves `/metrics`, `/rooms` and `/healthz`.
    Metrics,
}

/// Whether the limits of the server allow another WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// They allow it.
    Allowed,
    /// The server has as many connections as it may have.
    ServerFull,
    /// The client's address has as many connections as it may have.
    AddressFull,
    /// The room has as many peers as it may have.
    RoomFull,
    /// The server is draining, and the room would be new.
    Draining,
}

/// The status codes of rejected upgrades.
pub const REJECT_STATUSES: [u16; 9] = [400, 401, 403, 404, 405, 426, 429, 431, 503];

/// Finds the end of the request head at the beginning of these bytes.
///
/// The first `searched` bytes are known to contain no end.
pub fn head_end(bytes: &[u8], searched: usize) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    let from = searched.saturating_sub(END.len() - 1);
    let index = bytes[from..].windows(END.len()).position(|window| window == END)?;
    Some(from + index + END.len())
}

/// Returns whether these bytes cannot begin a request.
///
/// A request begins with a method, which is a token, and a space (RFC 9112 sections 2.2 and 3). A client that speaks TLS
/// or SSH gets its response at once, and not when the time for the head is over.
pub fn is_not_http(bytes: &[u8]) -> bool {
    let is_token_byte = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let line_start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
    let line = &bytes[line_start..];
    let method_bytes = line.iter().take(METHOD_BYTES_MAX + 1).take_while(is_token_byte).count();
    if method_bytes > METHOD_BYTES_MAX {
        return true;
    }
    match line.get(method_bytes) {
        Some(byte) => *byte != b' ' || method_bytes == 0,
        None => false,
    }
}

/// Responds to a head that did not arrive in time, of which this much came.
pub fn timeout(head: &[u8]) -> Response {
    respond_early(408, "the request head did not arrive in time", head)
}

/// Responds to a head larger than [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
pub fn head_too_large(head: &[u8]) -> Response {
    let sentence =
        format!("expected a request head of at most {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} headers");
    respond_early(431, &sentence, head)
}

/// Responds to a head for which the memory limit leaves no memory.
pub fn no_memory(head: &[u8]) -> Response {
    respond_early(503, "the server's memory is used up", head)
}

/// Responds to bytes that are not a request head.
pub fn malformed(head: &[u8]) -> Response {
    respond_early(400, "expected an HTTP request", head)
}

/// Responds to a head that is not parsed.
///
/// A search of its bytes tells whether the client wants no body (RFC 9110 section 9.3.2), and whether the request is for
/// a WebSocket, so that the log has the reason.
fn respond_early(status: u16, sentence: &str, head: &[u8]) -> Response {
    const WEBSOCKET: &[u8] = b"websocket";
    let head_only = head.starts_with(b"HEAD ");
    let mut response = render_sentence(status, sentence, &[], head_only);
    let is_upgrade = head.windows(WEBSOCKET.len()).any(|window| window.eq_ignore_ascii_case(WEBSOCKET));
    if !is_upgrade {
        response.remove_reject_reason();
    }
    response
}

fn has_bare_line_feed(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r"))
}

const ALLOW: (&str, &str) = ("Allow", "GET, HEAD, OPTIONS");

/// Space for the headers of one request, see [`Request::parse`].
pub type Headers<'a> = [httparse::Header<'a>; HEADERS_MAX];

/// The initial value of [`Headers`].
pub const NO_HEADERS: Headers<'static> = [httparse::EMPTY_HEADER; HEADERS_MAX];

/// A parsed request.
pub struct Request<'a> {
    method: &'a str,
    /// The request target, as the client sent it.
    target: &'a str,
    /// The minor version: HTTP/1.0 or HTTP/1.1.
    version: u8,
    headers: &'a [httparse::Header<'a>],
    listener: ListenerKind,
}

/// The parsed target of a request.
pub struct Route {
    /// The path, normalized.
    path: String,
    query: Query,
    /// The protocol and room of a WebSocket path, or the error in it. `None`: the path is not for WebSockets.
    target: Option<Result<Target, &'static str>>,
}

impl Route {
    /// Returns the protocol and room of a valid WebSocket path.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()?.as_ref().ok()
    }
}

impl<'a> Request<'a> {
    /// Parses a complete request head.
    ///
    /// # Errors
    /// The response to a malformed head.
    pub fn parse<'h: 'a>(
        head: &'h [u8],
        headers: &'a mut Headers<'h>,
        listener: ListenerKind,
    ) -> Result<Request<'a>, Response> {
        let mut parsed = httparse::Request::new(headers);
        match parsed.parse(head) {
            // A proxy and this server can disagree on whether a bare line feed ends a line (request smuggling).
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
            let response = request.sentence(400, "expected one Host header", &[]);
            return Err(request.with_reason_if_upgrade(response));
        }
        Ok(request)
    }

    /// Returns the client address that a trusted proxy reports, if it reports one.
    ///
    /// # Errors
    /// The response to a request in which that address is not readable.
    pub fn reported_address(&self, config: &Config) -> Result<Option<IpAddr>, Response> {
        self.client_address(config).map_err(|unreadable| {
            let response = self.unreadable_address(&unreadable);
            self.with_reason_if_upgrade(response)
        })
    }

    /// Parses the request target.
    pub fn route(&self, config: &Config) -> Route {
        let (path, query) = route::path_and_query(self.target);
        let target = match self.listener {
            ListenerKind::Main => route::target(&path, &query, self.is_attempted_upgrade(), config),
            ListenerKind::Metrics => None,
        };
        Route { path: path.into_owned(), query, target }
    }

    /// Decides on the response. `unix_time` is the time since 1970, for the expiry of tokens.
    pub fn respond(
        &self,
        route: Route,
        admission: Admission,
        config: &Config,
        unix_time: Duration,
    ) -> Response {
        let response = self.choose_response(route, admission, config, unix_time);
        self.with_reason_if_upgrade(response)
    }

    fn choose_response(
        &self,
        route: Route,
        admission: Admission,
        config: &Config,
        unix_time: Duration,
    ) -> Response {
        if self.method == "OPTIONS" {
            // HAProxy's health checks use this method.
            return render(204, b"", &[ALLOW], true);
        }
        let Route { path, query, target } = route;
        match (self.listener, target) {
            (ListenerKind::Main, Some(target)) => self.upgrade(target, admission, config, unix_time),
            // Before the check for an upgrade: a health check succeeds whatever headers a load balancer adds to it.
            (ListenerKind::Main, None) if route::is_health(&path, config) => self.health(admission),
            (ListenerKind::Main, None) if self.is_attempted_upgrade() => self.no_websocket_path(&path),
            (ListenerKind::Main, None) => self.static_file(&path, config),
            // Before the check of the Host: the health contains nothing that a page of another origin could use.
            (ListenerKind::Metrics, _) if path.strip_suffix('/').unwrap_or(&path) == paths::HEALTH => {
                self.health(admission)
            }
            (ListenerKind::Metrics, _) if !self.has_metrics_host(config) => self.unexpected_host(),
            (ListenerKind::Metrics, _) => self.admin(&path, &query),
        }
    }

    /// Removes the reject reason from a response, unless the request is for a WebSocket.
    ///
    /// The log and the metrics count rejected upgrades only.
    fn with_reason_if_upgrade(&self, mut response: Response) -> Response {
        let is_upgrade = self.listener == ListenerKind::Main && self.is_attempted_upgrade();
        if !is_upgrade {
            response.remove_reject_reason();
        }
        response
    }

    /// Returns whether the client requests a WebSocket: it sends a key or an `Upgrade` header.
    ///
    /// A proxy that is not configured for WebSockets drops `Upgrade`, but not the key.
    fn is_attempted_upgrade(&self) -> bool {
        self.has("sec-websocket-key") || self.lists("upgrade", "websocket")
    }

    // ---- Resources ----

    fn static_file(&self, path: &str, config: &Config) -> Response {
        match web::find(path) {
            Some(file) if config.page => self.file(file, config),
            _ => self.sentence(404, "not found; WebSockets connect to /ws or /ws/ROOM", &[]),
        }
    }

    /// Responds with the server's health. A full server is healthy, a draining one is not.
    fn health(&self, admission: Admission) -> Response {
        match admission {
            Admission::Draining => self.resource(503, "draining", &[TEXT]),
            _ => self.resource(200, "ok", &[TEXT]),
        }
    }

    /// Responds to an operator at the metrics listener.
    fn admin(&self, path: &str, query: &Query) -> Response {
        match path {
            "/metrics" => self.admin_request(AdminTopic::Metrics),
            "/rooms" => match route::rooms_topic(query) {
                Some(topic) => self.admin_request(topic),
                None => {
                    let sentence = "/rooms: expected no query fields but room=ROOM and after=NEXT";
                    self.sentence(400, sentence, &[])
                }
            },
            _ => self.sentence(404, "not found; see /metrics, /rooms and /healthz", &[]),
        }
    }

    fn admin_request(&self, topic: AdminTopic) -> Response {
        self.if_get_or_head(|head_only| Response::Admin(AdminRequest { topic, head_only }))
    }

    /// Responds with a file. A browser may cache it, but must revalidate it on each use.
    fn file(&self, file: &File, config: &Config) -> Response {
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
            if self.has_allowed_origin(config) {
                headers.extend(self.cors_header());
            }
        }
        // RFC 9110 section 13.1.2: the comparison is weak.
        let weak_etag = format!("W/{etag}");
        let matching_tags = [&etag, &weak_etag, "*"];
        let is_cached = matching_tags.iter().any(|tag| self.lists("if-none-match", tag));
        let status = if is_cached { 304 } else { 200 };
        self.resource(status, file.body, &headers)
    }

    /// Returns the header that lets the requesting page read the response.
    fn cors_header(&self) -> Option<(&'static str, &'a str)> {
        self.value("origin").map(|origin| ("Access-Control-Allow-Origin", origin))
    }

    fn resource(&self, status: u16, body: &str, headers: &[(&str, &str)]) -> Response {
        self.if_get_or_head(|head_only| render(status, body.as_bytes(), headers, head_only))
    }

    /// Responds with 405 unless the method is GET or HEAD.
    fn if_get_or_head(&self, respond: impl FnOnce(bool) -> Response) -> Response {
        match self.method {
            "GET" => respond(false),
            "HEAD" => respond(true),
            _ => self.sentence(405, "expected GET, HEAD or OPTIONS", &[ALLOW]),
        }
    }

    fn sentence(&self, status: u16, sentence: &str, headers: &[(&str, &str)]) -> Response {
        let head_only = self.method == "HEAD";
        render_sentence(status, sentence, headers, head_only)
    }

    // ---- Upgrades ----

    fn upgrade(
        &self,
        target: Result<Target, &'static str>,
        admission: Admission,
        config: &Config,
        unix_time: Duration,
    ) -> Response {
        if !matches!(self.method, "GET" | "HEAD") {
            return self.sentence(405, "expected GET to open a WebSocket", &[ALLOW]);
        }
        let target = match target {
            Ok(target) => target,
            Err(sentence) => return self.sentence(400, sentence, &[]),
        };
        if !self.has_allowed_origin(config) {
            return self.origin_not_allowed();
        }
        // Before the headers of the upgrade: a browser hides the response to a rejected upgrade from the page, but shows
        // the response to a plain request of the same URL.
        let claims = match &config.token_secrets {
            None => None,
            // An Ayame client sends its token, and its room, in its first message.
            Some(_) if target.protocol == ProtocolId::Ayame => None,
            Some(secrets) => match self.verified_claims(&target, secrets, unix_time) {
                Ok(claims) => Some(Box::new(claims)),
                Err(error) => return self.unauthorized(error),
            },
        };
        let faults = self.upgrade_faults();
        let has_version_13 = self.value("sec-websocket-version") == Some("13");
        if !faults.is_empty() || self.method != "GET" || !has_version_13 {
            return self.upgrade_required(&faults);
        }
        let Some(key) = self.value("sec-websocket-key").filter(|key| is_websocket_key(key)) else {
            return self.sentence(400, "Sec-WebSocket-Key is missing or malformed", &[]);
        };
        match admission {
            Admission::Allowed => {}
            Admission::ServerFull => return self.sentence(503, "the server is full", &[]),
            Admission::AddressFull => {
                return self.sentence(429, "too many connections from your address", &[]);
            }
            Admission::RoomFull => return self.sentence(503, "the room is full", &[]),
            Admission::Draining => {
                return self.sentence(503, "the server is shutting down; reconnect later", &[]);
            }
        }
        let accept = derive_accept_key(key.as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        Response::Upgrade { bytes: head.into_bytes(), target, claims }
    }

    /// Returns the header faults that prevent an upgrade, each with its likely cause.
    ///
    /// Proxies that are not configured for WebSockets send HTTP/1.0, or drop the hop-by-hop headers.
    fn upgrade_faults(&self) -> Vec<&'static str> {
        let mut faults = Vec::new();
        if self.version == 0 {
            faults.push("HTTP/1.0, but WebSocket needs HTTP/1.1: does nginx lack proxy_http_version 1.1?");
        }
        if !self.has("upgrade") {
            faults.push("no Upgrade header: is a proxy dropping it?");
        } else if !self.lists("upgrade", "websocket") {
            faults.push("the Upgrade header does not list websocket");
        } else if !self.lists("connection", "upgrade") {
            faults.push("no Upgrade in the Connection header: is a proxy changing it?");
        }
        faults
    }

    /// Rejects a request for a WebSocket path that is not an upgrade, or one with these faults.
    fn upgrade_required(&self, faults: &[&str]) -> Response {
        let headers = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
        if self.is_attempted_upgrade() && !faults.is_empty() {
            self.sentence(426, &faults.join("; "), &headers)
        } else {
            self.sentence(426, "expected a WebSocket upgrade, version 13", &headers)
        }
    }

    /// Rejects an upgrade at a path that is not for WebSockets.
    fn no_websocket_path(&self, path: &str) -> Response {
        let sentence = if path.starts_with("//") {
            "not a WebSocket path, because it begins with two slashes; use /ws or /ws/ROOM"
        } else {
            "not a WebSocket path; use /ws or /ws/ROOM"
        };
        self.sentence(404, sentence, &[])
    }

    /// Rejects a request in which a trusted proxy reports no readable client address.
    ///
    /// The log gets the value of the header, the client does not.
    fn unreadable_address(&self, unreadable: &UnreadableAddress) -> Response {
        let UnreadableAddress { header, value } = unreadable;
        let sentence = format!("{header}: expected the client's IP address");
        let mut response = self.sentence(400, &sentence, &[]);
        if let Some(reason) = response.reject_reason_mut() {
            reason.message = format!("{sentence}, got {value:?}");
        }
        response
    }

    // ---- Origin and Host ----

    /// Rejects a page of another origin.
    ///
    /// The usual cause is a proxy that does not forward `Host` as the browser sent it. So the response and the log show
    /// both headers, and the other faults of that proxy.
    fn origin_not_allowed(&self) -> Response {
        let origin = self.value_for_log("origin", ORIGIN_LOGGED_MAX);
        let host = self.value_for_log("host", ORIGIN_LOGGED_MAX);
        let mut sentence = format!("Origin {origin:?} does not match Host {host:?}; see --allow-origin");
        if self.is_attempted_upgrade() {
            for fault in self.upgrade_faults() {
                sentence.push_str("; ");
                sentence.push_str(fault);
            }
        }
        self.sentence(403, &sentence, &[])
    }

    /// Returns whether the page that sends this request may connect.
    ///
    /// A browser sends the origin of the page, so that no page can misuse the visitor's position in the network. Other
    /// clients send no `Origin`, and could send any.
    fn has_allowed_origin(&self, config: &Config) -> bool {
        if !self.has("origin") {
            return true;
        }
        let Some(origin) = self.value("origin") else { return false };
        if config.allow_origins.iter().any(|allowed| allowed.matches(origin)) {
            return true;
        }
        self.value("host").is_some_and(|host| origin::is_same_origin(origin, host))
    }

    /// Returns whether the metrics listener serves a request with this `Host`.
    ///
    /// A page whose name was rebound to the address of this machine (DNS rebinding) sends its name as `Host`. That name
    /// is registered, so it is neither an IP address nor a name of one label. A request without `Host` (HTTP/1.0) comes
    /// from no browser.
    fn has_metrics_host(&self, config: &Config) -> bool {
        let Some(host) = self.only_value("host") else { return true };
        std::str::from_utf8(host).is_ok_and(|host| origin::is_local_host(host, &config.metrics_hosts))
    }

    /// Rejects a request at the metrics listener because of its `Host`.
    fn unexpected_host(&self) -> Response {
        let host = self.value_for_log("host", ORIGIN_LOGGED_MAX);
        let sentence = format!(
            "Host: expected an IP address, a name without dots or a name of --metrics-host, got {host:?}"
        );
        self.sentence(403, &sentence, &[])
    }

    // ---- Headers ----

    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.headers.iter();
        let named = headers.filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value)
    }

    fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Returns the value of a header that occurs once and is UTF-8.
    fn value(&self, name: &str) -> Option<&'a str> {
        let value = self.only_value(name)?;
        std::str::from_utf8(value).ok()
    }

    /// Returns the value of a header that occurs once.
    fn only_value(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.values(name);
        let value = values.next()?;
        match values.next() {
            Some(_) => None,
            None => Some(value),
        }
    }

    /// Returns the first `chars_max` characters of all values of a header. Not escaped.
    fn value_for_log(&self, name: &str, chars_max: usize) -> String {
        let values: Vec<_> = self.values(name).map(String::from_utf8_lossy).collect();
        values.join(", ").chars().take(chars_max).collect()
    }

    /// Returns whether a header that is a comma-separated list has this element.
    fn lists(&self, name: &str, element: &str) -> bool {
        let mut elements = self.values(name).flat_map(|value| value.split(|byte| *byte == b','));
        elements.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(element.as_bytes()))
    }
}

/// Returns whether a `Sec-WebSocket-Key` is the base64 of 16 bytes.
fn is_websocket_key(key: &str) -> bool {
    let is_base64_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let Some(digits) = key.strip_suffix("==") else { return false };
    digits.len() == 22 && digits.bytes().all(is_base64_byte)
}

#[cfg(test)]
mod tests;
