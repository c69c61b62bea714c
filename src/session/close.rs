//! Names the close reasons and maps them to Close frames.

use tungstenite::error::Error;

use super::frame::FrameError;
use crate::named_enum::named_enum;

named_enum! {
    /// Names the reason for the end of a session.
    ///
    /// The variants are named after the labels that the log and the metrics show.
    pub enum CloseReason {
        /// The connection never became a WebSocket: it got a plain HTTP response or ended before that.
        Http = "http",
        /// The peer closed the WebSocket with a Close frame.
        Left = "left",
        /// The connection failed, or the peer closed TCP without a Close frame.
        Lost = "lost",
        /// The peer violated RFC 6455.
        Protocol = "protocol_error",
        /// The peer sent a text message that is not UTF-8.
        NotUtf8 = "not_utf8",
        /// The peer sent a message larger than `--max-message`.
        TooBig = "too_big",
        /// The peer exceeded the rate limit for too long.
        RateLimited = "rate_limited",
        /// The peer did not register an id in time.
        Unregistered = "unregistered",
        /// The peer reads too slowly, so that its outbound queue is full.
        Slow = "slow",
        /// A message from or to the peer exceeds `--max-memory`.
        NoMemory = "no_memory",
        /// Another connection got the id or seat of the peer: a probe failed, or the token of the other is for the id.
        Replaced = "replaced",
        /// The protocol has finished with the peer: its exchange is complete, or it was rejected or not understood.
        Finished = "finished",
        /// The peer sent nothing for two ping intervals.
        Silent = "silent",
        /// The server shuts down.
        GoingAway = "going_away",
    }
}

impl CloseReason {
    /// Returns the payload of the Close frame that the server sends.
    ///
    /// `None`: the server sends no Close frame for this reason.
    pub(super) fn close_payload(self) -> Option<Vec<u8>> {
        let (code, reason) = match self {
            CloseReason::Http | CloseReason::Left | CloseReason::Lost => return None,
            CloseReason::Protocol => (1002_u16, "protocol error"),
            CloseReason::NotUtf8 => (1007, "text is not UTF-8"),
            CloseReason::TooBig => (1009, "message too big"),
            CloseReason::RateLimited => (1008, "rate limit"),
            CloseReason::Unregistered => (1008, "nothing registered"),
            CloseReason::Slow => (1013, "reads too slowly"),
            CloseReason::NoMemory => (1013, "server out of memory"),
            CloseReason::Finished => (1000, ""),
            CloseReason::Replaced => (4000, "replaced"),
            CloseReason::Silent => (4001, "no sign of life"),
            CloseReason::GoingAway => (1001, "server going away"),
        };
        Some([&code.to_be_bytes(), reason.as_bytes()].concat())
    }
}

impl From<Error> for CloseReason {
    /// Converts an error of the tungstenite codec.
    fn from(error: Error) -> CloseReason {
        match error {
            Error::Utf8(_) => CloseReason::NotUtf8,
            Error::Capacity(_) => CloseReason::TooBig,
            _ => CloseReason::Protocol,
        }
    }
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> CloseReason {
        match error {
            FrameError::Protocol => CloseReason::Protocol,
            FrameError::NotUtf8 => CloseReason::NotUtf8,
            FrameError::TooBig => CloseReason::TooBig,
        }
    }
}
