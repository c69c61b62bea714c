//! What a request is answered with.

use crate::protocol::Target;
use crate::token::{Claims, TokenError};

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this response and speak WebSocket.
    Upgrade {
        /// The bytes of the 101.
        response: Vec<u8>,
        /// What was asked for.
        target: Target,
        /// What its token says, where one is needed.
        claims: Option<Claims>,
    },
    /// Send this response and close.
    Plain {
        /// Why, if the request was for a WebSocket.
        refused: Option<Refusal>,
        /// The status code in it.
        status: u16,
        /// The bytes of the response.
        response: Vec<u8>,
    },
    /// Send what [`told`] makes of the answer to this question, and close.
    Ask(AdminRequest),
}

/// What an operator asks at the `--metrics` listener.
#[derive(Debug, PartialEq, Eq)]
pub struct AdminRequest {
    /// What it is about.
    pub about: AdminTopic,
    /// Whether only the head of the answer is wanted.
    pub(super) head_only: bool,
}

/// What an operator asks about.
#[derive(Debug, PartialEq, Eq)]
pub enum AdminTopic {
    /// The metrics.
    Metrics,
    /// Who is in this room, or in any, from behind this place in the list on.
    Rooms {
        /// Its name.
        room: Option<String>,
        /// What the page before has said.
        after: Option<(u64, u64)>,
    },
}

/// Why a request for a WebSocket was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the log: what the peer chose is quoted.
    pub why: String,
    /// What is wrong with its token, if it is that.
    pub fault: Option<TokenError>,
}

/// The answer to a question, of which this is the text.
pub fn told(question: &AdminRequest, text: &str) -> Answer {
    let kind = match question.about {
        AdminTopic::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        AdminTopic::Rooms { .. } => "application/json",
    };
    response(200, text.as_bytes(), &[("Content-Type", kind)], question.head_only)
}

pub(super) const TEXT: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");

pub(super) fn plain(status: u16, sentence: &str, headers: &[(&str, &str)], head_only: bool) -> Answer {
    let headers = [&[TEXT], headers].concat();
    let mut answer = response(status, format!("{sentence}\n").as_bytes(), &headers, head_only);
    if let Answer::Plain { refused, .. } = &mut answer {
        *refused = Some(Refusal { why: sentence.to_owned(), fault: None });
    }
    answer
}

pub(super) fn response(status: u16, body: &[u8], headers: &[(&str, &str)], head_only: bool) -> Answer {
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
        _ => unreachable!("these are all"),
    };
    // RFC 9110 section 7.8: who sends Upgrade lists it in Connection.
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
    let mut response = head.into_bytes();
    // RFC 9110 section 15.4.5: whoever has the body is not sent it again.
    if !head_only && status != 304 {
        response.extend_from_slice(body);
    }
    Answer::Plain { status, response, refused: None }
}
