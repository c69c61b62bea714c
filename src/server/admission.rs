//! Decides on every well-formed request: one place for routes, origins, tokens, limits, rooms and a drain.
//!
//! This module is pure. A request and the state of the server go in, a [`Decision`] comes out, and `requests` carries it out.
//! Upgrades, pages, health checks, `/metrics`, `/rooms` and the resources of protocols pass through [`Policy::decide`]. It asks
//! [`Dispatcher::destination`] for the route of a protocol, and its caller for the [`LimitCheck`].
//!
//! Not decided here: a request head that is malformed (400), too large (431), incomplete after its deadline (408) or without
//! memory (503) gets its response from `http` and `session`; `requests` replaces a response for which there is no memory (503);
//! `listeners` closes connections of one address beyond `PER_IP_REJECTED_AT_ONCE` without a response.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::Config;
use crate::http::query::Query;
use crate::http::token::{Claims, Secrets, TokenError};
use crate::http::{
    ALLOW, Headers, ListenerKind, Request, Response, TEXT, UnreadableAddress, origin, paths, render,
    switching_protocols,
};
use crate::limits::ORIGIN_LOGGED_MAX;
use crate::protocol::{Descriptor, Resource, Target, TokenPlace};
use crate::protocols::{Destination, Dispatcher};
use crate::web::{self, File};

/// What follows from a request.
#[derive(Debug)]
pub enum Decision {
    /// Send these bytes; then the connection is a WebSocket.
    Upgrade {
        /// The bytes of the 101.
        bytes: Vec<u8>,
        /// The protocol and room that the client requested.
        target: Target,
        /// The claims of its token, if the server requires one in the request. Boxed to keep the enum small.
        claims: Option<Box<Claims>>,
    },
    /// Send this response and close the connection.
    Respond(Response),
    /// Generate the text that the operator requests, send [`OperatorRequest::render`] of it, and close the connection.
    Operator(OperatorRequest),
    /// Let a protocol respond, send [`PendingResource::render`] of that, and close the connection.
    Resource(PendingResource),
}

/// Whether the limits of the server allow another WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitCheck {
    /// They allow it.
    Allowed,
    /// The server has as many connections as it may have, or `--max-memory` is used up.
    ServerFull,
    /// The client's address has as many connections as it may have.
    AddressFull,
    /// The room has as many peers as it may have.
    RoomFull,
    /// The server is draining, and the room would be new.
    Draining,
}

/// A request at the operator listener (`--metrics`) whose response depends on the server's state.
#[derive(Debug, PartialEq, Eq)]
pub struct OperatorRequest {
    /// The resource that is requested.
    pub resource: OperatorResource,
    /// Whether the response has no body (`HEAD`).
    head_only: bool,
}

/// A resource of the operator listener (`--metrics`).
#[derive(Debug, PartialEq, Eq)]
pub enum OperatorResource {
    /// `/metrics`.
    Metrics,
    /// `/rooms`: one page of the list of rooms and their members.
    Rooms {
        /// The only room to list. `None`: all rooms.
        room: Option<String>,
        /// The cursor that the page before returned as `next`. `None`: the first page.
        after: Option<(u64, u64)>,
    },
}

impl OperatorRequest {
    /// Renders the response, with this text as its body.
    pub fn render(&self, text: &str) -> Response {
        let media_type = match self.resource {
            OperatorResource::Metrics => "text/plain; version=0.0.4; charset=utf-8",
            OperatorResource::Rooms { .. } => "application/json",
        };
        render(200, text.as_bytes(), &[("Content-Type", media_type)], self.head_only)
    }
}

/// A request for a resource of a protocol.
#[derive(Debug)]
pub struct PendingResource {
    /// The protocol.
    pub protocol: &'static Descriptor,
    /// The path of the request.
    pub path: String,
    /// The query of the request.
    pub query: Query,
    /// Whether the response has no body (`HEAD`).
    head_only: bool,
    /// The origin of the page that requests it, which may read the response.
    page_origin: Option<String>,
}

impl PendingResource {
    /// Renders the response of the protocol.
    pub fn render(&self, resource: Option<&Resource>) -> Response {
        let mut headers = cors_headers(self.page_origin.as_deref());
        let Some(resource) = resource else {
            headers.push(TEXT);
            return render(404, b"not found\n", &headers, self.head_only);
        };
        headers.push(("Content-Type", resource.content_type));
        headers.push(("Cache-Control", "no-store"));
        headers.push(("X-Content-Type-Options", "nosniff"));
        if resource.status == 401 {
            // RFC 9110 section 11.6.1. Browsers do not ask for a password because of this scheme.
            headers.push(("WWW-Authenticate", "Bearer"));
        }
        render(resource.status, resource.body.as_bytes(), &headers, self.head_only)
    }
}

/// Parses a complete request head that this listener received.
///
/// # Errors
/// The response to a malformed head.
pub fn parse_head<'a, 'h: 'a>(
    head: &'h [u8],
    headers: &'a mut Headers<'h>,
    listener: ListenerKind,
) -> Result<Request<'a>, Response> {
    Request::parse(head, headers).map_err(|mut response| {
        // The log and the metrics count rejected upgrades of the main listener only.
        if listener != ListenerKind::Main {
            response.reject_reason = None;
        }
        response
    })
}

/// The state of the server on which decisions depend, besides the limits.
pub struct Policy<'a> {
    /// The listener that accepted the connection.
    pub listener: ListenerKind,
    /// The configuration.
    pub config: &'a Config,
    /// The protocols that are served.
    pub dispatcher: &'a Dispatcher,
    /// The time since 1970, for the expiry of tokens.
    pub unix_time: Duration,
}

impl Policy<'_> {
    /// Returns the client address that a trusted proxy reports, if it reports one.
    ///
    /// # Errors
    /// The response to a request in which that address is not readable.
    pub fn reported_address(&self, request: &Request) -> Result<Option<IpAddr>, Response> {
        let only_header = self.config.client_ip_header.as_deref();
        let is_trusted = |ip: IpAddr| self.config.is_trusted_proxy(ip.into());
        request.client_address(only_header, is_trusted).map_err(|unreadable| {
            let response = unreadable_address(request, &unreadable);
            self.complete_response(request, response)
        })
    }

    /// Decides on a request. `limits` is asked once; it gets the target of a valid WebSocket path.
    pub fn decide(&self, request: &Request, limits: impl FnOnce(Option<&Target>) -> LimitCheck) -> Decision {
        let (path, query) = request.path_and_query();
        let destination = self.destination(request, &path, &query);
        let limit_check = match &destination {
            Some(Destination::WebSocket(target)) => limits(Some(target)),
            _ => limits(None),
        };
        match self.choose(request, &path, &query, destination, limit_check) {
            Decision::Respond(response) => Decision::Respond(self.complete_response(request, response)),
            decision => decision,
        }
    }

    /// Returns what a path leads to, if it belongs to a protocol.
    ///
    /// If the rooms of a protocol are at the top level, a plain request for a page still gets the page, and the
    /// paths of health checks are never rooms.
    fn destination(&self, request: &Request, path: &str, query: &Query) -> Option<Destination> {
        if self.listener != ListenerKind::Main || self.is_health(path) {
            return None;
        }
        let is_page = self.config.page && web::find(path).is_some();
        if is_page && !request.is_attempted_upgrade() {
            return None;
        }
        self.dispatcher.destination(path, query)
    }

    fn choose(
        &self,
        request: &Request,
        path: &str,
        query: &Query,
        destination: Option<Destination>,
        limit_check: LimitCheck,
    ) -> Decision {
        if request.method == "OPTIONS" && !matches!(destination, Some(Destination::Resource(_))) {
            // HAProxy's health checks use this method.
            return Decision::Respond(render(204, b"", &[ALLOW], true));
        }
        if self.listener == ListenerKind::Operator {
            let decision = self.operator_resource(request, path, query, limit_check);
            return decision.unwrap_or_else(Decision::Respond);
        }
        match destination {
            Some(Destination::WebSocket(target)) => {
                self.upgrade(request, target, limit_check).unwrap_or_else(Decision::Respond)
            }
            Some(Destination::Invalid(sentence)) => Decision::Respond(match check_upgrade_method(request) {
                Ok(()) => request.text_response(400, sentence, &[]),
                Err(response) => response,
            }),
            // Before the check for an upgrade: a health check succeeds whatever headers a load balancer adds to it.
            None if self.is_health(path) => Decision::Respond(health(request, limit_check)),
            None | Some(Destination::Resource(_)) if request.is_attempted_upgrade() => {
                Decision::Respond(no_websocket_path(request, path))
            }
            Some(Destination::Resource(protocol)) => {
                self.resource(request, protocol, path, query).unwrap_or_else(Decision::Respond)
            }
            None => Decision::Respond(self.static_file(request, path)),
        }
    }

    /// Completes a response. If it is a rejection at the main listener, pages of allowed origins may read it.
    ///
    /// A browser hides the response to a rejected upgrade from the page, which can learn the reason from a plain request of the
    /// same URL. The log and the metrics count only rejected upgrades at the main listener, so that other responses lose
    /// their reject reason.
    fn complete_response(&self, request: &Request, mut response: Response) -> Response {
        if self.listener == ListenerKind::Operator {
            response.reject_reason = None;
            return response;
        }
        if response.reject_reason.is_some() {
            for (name, value) in cors_headers(self.allowed_origin(request)) {
                response.add_header(name, value);
            }
        }
        request.drop_reason_unless_upgrade(response)
    }

    // ---- Resources of the main listener ----

    /// Returns whether a path is that of a health check, of this server or of the original of a protocol that is served.
    fn is_health(&self, path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        path == paths::HEALTH
            || self.dispatcher.endpoints().any(|(endpoint, _)| endpoint.health_path == Some(path))
    }

    fn static_file(&self, request: &Request, path: &str) -> Response {
        match web::find(path) {
            Some(file) if self.config.page => self.file(request, file),
            // The noroshi protocol is always on, at these paths.
            _ => request.text_response(404, "not found; WebSockets connect to /ws or /ws/ROOM", &[]),
        }
    }

    /// Responds with a file. A browser may cache it, but must revalidate it on each use.
    fn file(&self, request: &Request, file: &File) -> Response {
        let etag = file.etag();
        // Caches need no `Vary: Host`: the host is a part of the URL, which is their key (RFC 9111 section 2).
        let policy = file.policy(request.value("host"));
        let mut headers = vec![
            ("Content-Type", file.content_type),
            ("Cache-Control", "no-cache"),
            ("ETag", &etag),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ];
        headers.extend(policy.as_deref().map(|policy| ("Content-Security-Policy", policy)));
        if file.is_cross_origin {
            headers.extend(cors_headers(self.allowed_origin(request)));
        }
        // RFC 9110 section 13.1.2: the comparison is weak.
        let weak_etag = format!("W/{etag}");
        let matching_tags = [&etag, &weak_etag, "*"];
        let is_cached = matching_tags.iter().any(|tag| request.lists("if-none-match", tag));
        let status = if is_cached { 304 } else { 200 };
        respond(request, status, file.body, &headers)
    }

    fn resource(
        &self,
        request: &Request,
        protocol: &'static Descriptor,
        path: &str,
        query: &Query,
    ) -> Result<Decision, Response> {
        if !self.has_allowed_origin(request) {
            return Err(origin_not_allowed(request));
        }
        let page_origin = request.value("origin");
        if request.method == "OPTIONS" {
            let headers = [cors_headers(page_origin), vec![ALLOW]].concat();
            return Ok(Decision::Respond(render(204, b"", &headers, true)));
        }
        let head_only = check_get_or_head(request)?;
        let (path, query) = (path.to_owned(), query.clone());
        let page_origin = page_origin.map(str::to_owned);
        Ok(Decision::Resource(PendingResource { protocol, path, query, head_only, page_origin }))
    }

    // ---- Resources of the operator listener ----

    fn operator_resource(
        &self,
        request: &Request,
        path: &str,
        query: &Query,
        limit_check: LimitCheck,
    ) -> Result<Decision, Response> {
        // Before the check of the Host: the health contains nothing that a page of another origin could use.
        if path.strip_suffix('/').unwrap_or(path) == paths::HEALTH {
            return Ok(Decision::Respond(health(request, limit_check)));
        }
        if !self.has_operator_host(request) {
            return Err(unexpected_host(request));
        }
        let resource = match path {
            "/metrics" => OperatorResource::Metrics,
            "/rooms" => match rooms_resource(query) {
                Some(resource) => resource,
                None => {
                    let sentence = "/rooms: expected no query fields but room=ROOM and after=NEXT";
                    return Err(request.text_response(400, sentence, &[]));
                }
            },
            _ => return Err(request.text_response(404, "not found; see /metrics, /rooms and /healthz", &[])),
        };
        let head_only = check_get_or_head(request)?;
        Ok(Decision::Operator(OperatorRequest { resource, head_only }))
    }

    /// Returns whether the operator listener serves a request with this `Host`.
    ///
    /// A page whose name was rebound to the address of this machine (DNS rebinding) sends its name as `Host`. That name
    /// is registered, so it is neither an IP address nor a name of one label. A request without `Host` (HTTP/1.0) comes
    /// from no browser.
    fn has_operator_host(&self, request: &Request) -> bool {
        let Some(host) = request.only_value("host") else { return true };
        std::str::from_utf8(host).is_ok_and(|host| origin::is_local_host(host, &self.config.metrics_hosts))
    }

    // ---- Upgrades ----

    fn upgrade(
        &self,
        request: &Request,
        target: Target,
        limit_check: LimitCheck,
    ) -> Result<Decision, Response> {
        check_upgrade_method(request)?;
        let request_token_secrets = match target.protocol.token_place {
            TokenPlace::Request | TokenPlace::RequestWithoutRoom => self.config.token_secrets.as_ref(),
            TokenPlace::Message => None,
        };
        if request_token_secrets.is_some() && target.query.values("token").any(|token| token.is_err()) {
            return Err(request.text_response(400, "query field token: expected UTF-8", &[]));
        }
        if !self.has_allowed_origin(request) {
            return Err(origin_not_allowed(request));
        }
        let claims = match request_token_secrets {
            Some(secrets) => {
                let verified = verified_claims(request, &target, secrets, self.unix_time);
                let claims = verified.map_err(|error| unauthorized(request, error))?;
                let is_for_room = target.protocol.token_place == TokenPlace::Request;
                if is_for_room && !claims.allows(&target.room) {
                    return Err(token_for_other_room(request, &target.room, &claims));
                }
                Some(Box::new(claims))
            }
            None => None,
        };
        match limit_check {
            LimitCheck::Allowed => {}
            LimitCheck::ServerFull => return Err(request.text_response(503, "the server is full", &[])),
            LimitCheck::AddressFull => {
                return Err(request.text_response(429, "too many connections from your address", &[]));
            }
            LimitCheck::RoomFull => return Err(request.text_response(503, "the room is full", &[])),
            LimitCheck::Draining => {
                let sentence = "the server is shutting down; reconnect later";
                return Err(request.text_response(503, sentence, &[]));
            }
        }
        // After the other checks, so that the response to a plain request of the same URL has their reason.
        let key = request.upgrade_key()?;
        Ok(Decision::Upgrade { bytes: switching_protocols(key), target, claims })
    }

    /// Returns whether the page that sends this request may connect.
    ///
    /// A browser sends the origin of the page, so that no page can misuse the visitor's position in the network. Other
    /// clients send no `Origin`, and could send any.
    fn has_allowed_origin(&self, request: &Request) -> bool {
        if !request.has("origin") {
            return true;
        }
        let Some(origin) = request.value("origin") else { return false };
        if self.config.allow_origins.iter().any(|allowed| allowed.matches(origin)) {
            return true;
        }
        request.value("host").is_some_and(|host| origin::is_same_origin(origin, host))
    }

    /// Returns the origin of the page that sends this request, if it is allowed.
    fn allowed_origin<'a>(&self, request: &Request<'a>) -> Option<&'a str> {
        request.value("origin").filter(|_| self.has_allowed_origin(request))
    }
}

/// Returns the headers that let a page of this allowed origin read the response.
///
/// A cache must not give it to a page of another origin, even if there is no header that allows this one.
fn cors_headers(page_origin: Option<&str>) -> Vec<(&'static str, &str)> {
    let mut headers = vec![("Vary", "Origin")];
    headers.extend(page_origin.map(|origin| ("Access-Control-Allow-Origin", origin)));
    headers
}

// ---- Responses ----

/// Responds with the server's health. A full server is healthy, a draining one is not.
fn health(request: &Request, limit_check: LimitCheck) -> Response {
    match limit_check {
        LimitCheck::Draining => respond(request, 503, "draining", &[TEXT]),
        _ => respond(request, 200, "ok", &[TEXT]),
    }
}

/// Responds with this content, or with 405 unless the method is GET or HEAD.
fn respond(request: &Request, status: u16, body: &str, headers: &[(&str, &str)]) -> Response {
    match check_get_or_head(request) {
        Ok(head_only) => render(status, body.as_bytes(), headers, head_only),
        Err(response) => response,
    }
}

/// Returns whether the method is HEAD.
///
/// # Errors
/// The response to another method than GET and HEAD.
fn check_get_or_head(request: &Request) -> Result<bool, Response> {
    match request.method {
        "GET" => Ok(false),
        "HEAD" => Ok(true),
        _ => Err(request.text_response(405, "expected GET, HEAD or OPTIONS", &[ALLOW])),
    }
}

/// # Errors
/// The response to another method than GET and HEAD. HEAD is no upgrade either, but gets the response of an upgrade, without a
/// body.
fn check_upgrade_method(request: &Request) -> Result<(), Response> {
    match request.method {
        "GET" | "HEAD" => Ok(()),
        _ => Err(request.text_response(405, "expected GET to open a WebSocket", &[ALLOW])),
    }
}

/// Rejects an upgrade at a path that is not for WebSockets.
fn no_websocket_path(request: &Request, path: &str) -> Response {
    let sentence = if path.starts_with("//") {
        "not a WebSocket path, because it begins with two slashes; use /ws or /ws/ROOM"
    } else {
        "not a WebSocket path; use /ws or /ws/ROOM"
    };
    request.text_response(404, sentence, &[])
}

/// Rejects a request in which a trusted proxy reports no readable client address.
///
/// The log gets the value of the header, the client does not.
fn unreadable_address(request: &Request, unreadable: &UnreadableAddress) -> Response {
    let UnreadableAddress { header, value } = unreadable;
    let sentence = format!("{header}: expected the client's IP address");
    let mut response = request.text_response(400, &sentence, &[]);
    if let Some(reason) = &mut response.reject_reason {
        reason.message = format!("{sentence}, got {value:?}");
    }
    response
}

/// Rejects a page of another origin.
///
/// The usual cause is a proxy that does not forward `Host` as the browser sent it. So the response and the log show
/// both headers, and the other faults of that proxy.
fn origin_not_allowed(request: &Request) -> Response {
    let origin = request.value_for_log("origin", ORIGIN_LOGGED_MAX);
    let host = request.value_for_log("host", ORIGIN_LOGGED_MAX);
    let mut sentence = format!("Origin {origin:?} does not match Host {host:?}; see --allow-origin");
    if request.is_attempted_upgrade() {
        for fault in request.upgrade_faults() {
            sentence.push_str("; ");
            sentence.push_str(fault);
        }
    }
    request.text_response(403, &sentence, &[])
}

/// Rejects a request at the operator listener because of its `Host`.
fn unexpected_host(request: &Request) -> Response {
    let host = request.value_for_log("host", ORIGIN_LOGGED_MAX);
    let sentence = format!(
        "Host: expected an IP address, a name without dots or a name of --metrics-host, got {host:?}"
    );
    request.text_response(403, &sentence, &[])
}

// ---- Tokens ----

/// Verifies the token of a request and returns its claims.
///
/// The token is in the `Authorization` header or else in the query, because browsers cannot set headers of a WebSocket.
///
/// # Errors
/// There is no token, more than one, or it is not valid.
fn verified_claims(
    request: &Request,
    target: &Target,
    secrets: &Secrets,
    unix_time: Duration,
) -> Result<Claims, TokenError> {
    let bearer_tokens = request.values("authorization").filter_map(bearer_token);
    let mut tokens = bearer_tokens.collect::<Result<Vec<String>, TokenError>>()?;
    if tokens.is_empty() {
        let query_tokens = target.query.values("token");
        tokens = query_tokens.collect::<Result<_, _>>().map_err(|_| TokenError::Malformed)?;
    }
    match tokens.as_slice() {
        [] => Err(TokenError::Missing),
        [token] => secrets.verify(token, unix_time),
        _ => Err(TokenError::Malformed),
    }
}

/// Returns the token in the value of an `Authorization` header (RFC 6750 section 2.1).
///
/// `None`: the header has another scheme. It is for a proxy that asks for a password, for example.
fn bearer_token(value: &[u8]) -> Option<Result<String, TokenError>> {
    let value = value.trim_ascii();
    let scheme_end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at(scheme_end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let token = token.trim_ascii().to_vec();
    Some(String::from_utf8(token).map_err(|_| TokenError::Malformed))
}

/// Renders the response to a request without a valid token (RFC 6750 section 3).
fn unauthorized(request: &Request, error: TokenError) -> Response {
    let (status, challenge) = match error {
        TokenError::Room | TokenError::Id => (403, "Bearer error=\"insufficient_scope\""),
        _ => (401, "Bearer error=\"invalid_token\""),
    };
    let mut response = request.text_response(status, error.message(), &[("WWW-Authenticate", challenge)]);
    if let Some(reason) = &mut response.reject_reason {
        reason.token_error = Some(error);
    }
    response
}

/// Rejects a request with a valid token that does not permit the room.
///
/// The log gets both rooms, the client does not. The claims come last, because they may be long and the line is truncated.
fn token_for_other_room(request: &Request, room: &str, claims: &Claims) -> Response {
    let mut response = unauthorized(request, TokenError::Room);
    if let Some(reason) = &mut response.reject_reason {
        let sentence = TokenError::Room.message();
        let claims = [("room", &claims.room), ("room_prefix", &claims.room_prefix)];
        let permitted: Vec<String> = claims
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} {:?}", value.as_deref()?)))
            .collect();
        let permitted = permitted.join(" and ");
        reason.message = format!("{sentence}: it was used for room {room:?}, but permits {permitted}");
    }
    response
}

// ---- The query of /rooms ----

/// Parses the query of `/rooms`: the name of one room, and the cursor of the next page.
///
/// If a field is repeated, its last value counts. `None`: the query has an unknown field, or a malformed one.
fn rooms_resource(query: &Query) -> Option<OperatorResource> {
    let mut room = None;
    let mut after = None;
    for field in query.fields() {
        let (name, value) = field.ok()?;
        match name.as_str() {
            "room" => room = Some(value),
            "after" => after = Some(parse_cursor(&value)?),
            _ => return None,
        }
    }
    Some(OperatorResource::Rooms { room, after })
}

/// Parses two hexadecimal numbers with a dot between them.
fn parse_cursor(text: &str) -> Option<(u64, u64)> {
    let (room, conn) = text.split_once('.')?;
    let room = u64::from_str_radix(room, 16).ok()?;
    let conn = u64::from_str_radix(conn, 16).ok()?;
    Some((room, conn))
}

#[cfg(test)]
mod tests;
