//! HTTP/1.1: request heads in, response bytes out.
//!
//! This module does no I/O and decides nothing: `server::admission` decides on requests. Upgrades follow RFC 6455 section
//! 4.2. Every other response is complete, and the connection closes after it (RFC 9112).

use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, METHOD_BYTES_MAX};

pub mod address;
mod forwarded;
pub mod origin;
pub mod paths;
pub mod query;
mod request_target;
mod response;
pub mod token;
mod upgrade;

pub use forwarded::UnreadableAddress;
use query::Query;
pub use response::{RejectReason, Response, TEXT, render, render_text_response};
pub use upgrade::switching_protocols;

/// The listener that accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Serves WebSockets, the pages, the client library and `/healthz`.
    Main,
    /// Serves `/metrics`, `/rooms` and `/healthz`.
    Operator,
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
    let mut response = render_text_response(status, sentence, &[], head_only);
    let is_upgrade = head.windows(WEBSOCKET.len()).any(|window| window.eq_ignore_ascii_case(WEBSOCKET));
    if !is_upgrade {
        response.reject_reason = None;
    }
    response
}

fn has_bare_line_feed(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r"))
}

/// The header of responses that name the supported methods (RFC 9110 section 10.2.1).
pub const ALLOW: (&str, &str) = ("Allow", "GET, HEAD, OPTIONS");

/// Space for the headers of one request, see [`Request::parse`].
pub type Headers<'a> = [httparse::Header<'a>; HEADERS_MAX];

/// The initial value of [`Headers`].
pub const NO_HEADERS: Headers<'static> = [httparse::EMPTY_HEADER; HEADERS_MAX];

/// A parsed request head.
pub struct Request<'a> {
    /// The method, as the client sent it. Methods are case-sensitive.
    pub method: &'a str,
    /// The request target, as the client sent it.
    target: &'a str,
    /// The minor version: HTTP/1.0 or HTTP/1.1.
    version: u8,
    headers: &'a [httparse::Header<'a>],
}

impl<'a> Request<'a> {
    /// Parses a complete request head.
    ///
    /// # Errors
    /// The response to a malformed head.
    pub fn parse<'h: 'a>(head: &'h [u8], headers: &'a mut Headers<'h>) -> Result<Request<'a>, Response> {
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
        let request = Request { method, target, version, headers: parsed.headers };
        let hosts = request.values("host").count();
        if hosts > 1 || (hosts == 0 && version == 1) {
            // RFC 9112 section 3.2.
            let response = request.text_response(400, "expected one Host header", &[]);
            return Err(request.drop_reason_unless_upgrade(response));
        }
        Ok(request)
    }

    /// Returns the normalized path and the query.
    pub fn path_and_query(&self) -> (String, Query) {
        let (path, query) = request_target::path_and_query(self.target);
        (path.into_owned(), query)
    }

    // ---- Responses ----

    /// Returns whether the response has no body.
    pub fn is_head_only(&self) -> bool {
        self.method == "HEAD"
    }

    /// Renders a response to this request with this sentence as its body and as its reject reason.
    pub fn text_response(&self, status: u16, sentence: &str, headers: &[(&str, &str)]) -> Response {
        render_text_response(status, sentence, headers, self.is_head_only())
    }

    /// Removes the reject reason from a response, unless the request is for a WebSocket.
    ///
    /// The log and the metrics count rejected upgrades only.
    pub fn drop_reason_unless_upgrade(&self, mut response: Response) -> Response {
        if !self.is_attempted_upgrade() {
            response.reject_reason = None;
        }
        response
    }

    // ---- Headers ----

    /// Returns the values of all headers with this name.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.headers.iter();
        let named = headers.filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value)
    }

    /// Returns whether there is a header with this name.
    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Returns the value of a header that occurs once and is UTF-8.
    pub fn value(&self, name: &str) -> Option<&'a str> {
        let value = self.only_value(name)?;
        std::str::from_utf8(value).ok()
    }

    /// Returns the value of a header that occurs once.
    pub fn only_value(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.values(name);
        let value = values.next()?;
        match values.next() {
            Some(_) => None,
            None => Some(value),
        }
    }

    /// Returns the first `chars_max` characters of all values of a header. Not escaped.
    pub fn value_for_log(&self, name: &str, chars_max: usize) -> String {
        let values: Vec<_> = self.values(name).map(String::from_utf8_lossy).collect();
        values.join(", ").chars().take(chars_max).collect()
    }

    /// Returns whether a header that is a comma-separated list has this element.
    pub fn lists(&self, name: &str, element: &str) -> bool {
        let mut elements = self.values(name).flat_map(|value| value.split(|byte| *byte == b','));
        elements.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(element.as_bytes()))
    }
}
