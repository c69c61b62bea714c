//! HTTP responses.

use crate::http::token::{Claims, TokenError};
use crate::protocol::Target;

/// The response to a request, and what follows it.
#[derive(Debug, PartialEq, Eq)]
pub enum Response {
    /// Send this response; then the connection is a WebSocket.
    Upgrade {
        /// The bytes of the 101.
        bytes: Vec<u8>,
        /// The protocol and room that the client requested.
        target: Target,
        /// The claims of its token, if the server requires one. Boxed to keep the enum small.
        claims: Option<Box<Claims>>,
    },
    /// Send this response and close the connection.
    Plain {
        /// The reason, if the request was for a WebSocket.
        reject_reason: Option<RejectReason>,
        /// The status code in `bytes`.
        status: u16,
        /// The bytes of the response.
        bytes: Vec<u8>,
    },
    /// Generate the text that the operator requests, send [`render_admin_response`] of it, and close the connection.
    Admin(AdminRequest),
}

impl Response {
    /// Removes the reason for the log.
    pub(super) fn remove_reject_reason(&mut self) {
        if let Response::Plain { reject_reason, .. } = self {
            *reject_reason = None;
        }
    }

    /// Returns the reason for the log, if the response has one.
    pub(super) fn reject_reason_mut(&mut self) -> Option<&mut RejectReason> {
        match self {
            Response::Plain { reject_reason, .. } => reject_reason.as_mut(),
            Response::Upgrade { .. } | Response::Admin(_) => None,
        }
    }
}

/// A request at the `--metrics` listener whose response depends on the server's state.
#[derive(Debug, PartialEq, Eq)]
pub struct AdminRequest {
    /// The resource that is requested.
    pub topic: AdminTopic,
    /// Whether the response has no body (`HEAD`).
    pub(super) head_only: bool,
}

/// A resource of the `--metrics` listener.
#[derive(Debug, PartialEq, Eq)]
pub enum AdminTopic {
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

/// The reason why a request for a WebSocket is rejected.
#[derive(Debug, PartialEq, Eq)]
pub struct RejectReason {
    /// A sentence for the log. Text that the client chose is quoted.
    pub message: String,
    /// The error of its token, if that is the reason.
    pub token_error: Option<TokenError>,
}

/// Renders the response to an operator's request, with this text as its body.
pub fn render_admin_response(request: &AdminRequest, text: &str) -> Response {
    let media_type = match request.topic {
        AdminTopic::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        AdminTopic::Rooms { .. } => "application/json",
    };
    render(200, text.as_bytes(), &[("Content-Type", media_type)], request.head_only)
}

/// The header of a response whose body is plain text.
pub(super) const TEXT: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");

/// Renders a response with one sentence as its body, which is the reject reason too.
pub(super) fn render_sentence(
    status: u16,
    sentence: &str,
    headers: &[(&str, &str)],
    head_only: bool,
) -> Response {
    let headers = [&[TEXT], headers].concat();
    let body = format!("{sentence}\n");
    let mut response = render(status, body.as_bytes(), &headers, head_only);
    if let Response::Plain { reject_reason, .. } = &mut response {
        *reject_reason = Some(RejectReason { message: sentence.to_owned(), token_error: None });
    }
    response
}

/// Renders a complete response, after which the connection closes.
///
/// # Panics
/// If this server never sends `status`.
pub(super) fn render(status: u16, body: &[u8], headers: &[(&str, &str)], head_only: bool) -> Response {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => unreachable!("the server sends no other status"),
    };
    // RFC 9110 section 7.8: a sender of Upgrade lists it in Connection.
    let connection = if status == 426 { "Upgrade, close" } else { "close" };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\nConnection: {connection}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // RFC 9110 section 8.6.
    if status != 204 {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    // RFC 9110 section 15.4.5: a 304 has no body.
    if !head_only && status != 304 {
        bytes.extend_from_slice(body);
    }
    Response::Plain { status, bytes, reject_reason: None }
}
