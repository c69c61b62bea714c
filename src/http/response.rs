//! HTTP responses.

use super::token::TokenError;

/// A complete response, after which the connection closes.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code in `bytes`.
    pub status: u16,
    /// The bytes of the response.
    pub bytes: Vec<u8>,
    /// The reason, if the request was for a WebSocket.
    pub reject_reason: Option<RejectReason>,
}

impl Response {
    /// Adds a header before all others.
    pub fn add_header(&mut self, name: &str, value: &str) {
        const LINE_END: &[u8] = b"\r\n";
        let is_line_end = |bytes: &[u8]| bytes == LINE_END;
        let status_line = self.bytes.windows(LINE_END.len()).position(is_line_end);
        let at = status_line.expect("a response begins with a status line") + LINE_END.len();
        self.bytes.splice(at..at, format!("{name}: {value}\r\n").into_bytes());
    }
}

/// The reason why a request for a WebSocket is rejected.
#[derive(Debug, PartialEq, Eq)]
pub struct RejectReason {
    /// A sentence for the log. Text that the client chose is quoted.
    pub message: String,
    /// The error of its token, if that is the reason.
    pub token_error: Option<TokenError>,
}

/// The header of a response whose body is plain text.
pub const TEXT: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");

/// Renders a response with one sentence as its body, which is the reject reason too.
pub fn render_text_response(
    status: u16,
    sentence: &str,
    headers: &[(&str, &str)],
    head_only: bool,
) -> Response {
    let headers = [&[TEXT], headers].concat();
    let body = format!("{sentence}\n");
    let mut response = render(status, body.as_bytes(), &headers, head_only);
    response.reject_reason = Some(RejectReason { message: sentence.to_owned(), token_error: None });
    response
}

/// Renders a complete response, after which the connection closes.
///
/// # Panics
/// If this server never sends `status`.
pub fn render(status: u16, body: &[u8], headers: &[(&str, &str)], head_only: bool) -> Response {
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
    Response { status, bytes, reject_reason: None }
}
