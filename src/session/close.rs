//! Why a session ends, what that is called, and what the peer is told.

use tungstenite::error::Error;

use super::frame::Broken;
use crate::named_enum::named_enum;

named_enum! {
    /// Why a session ended.
    pub enum End {
        /// It was answered in plain HTTP, or went before that. A WebSocket never ends so.
        Http = "http",
        /// The peer closed.
        Left = "left",
        /// The connection broke, or TCP was closed without a Close frame.
        Lost = "lost",
        /// The peer broke RFC 6455.
        Protocol = "protocol_error",
        /// The peer sent text that is not UTF-8.
        NotUtf8 = "not_utf8",
        /// The peer sent a message larger than `--max-message`.
        TooBig = "too_big",
        /// The peer sent too much for too long.
        RateLimited = "rate_limited",
        /// The peer registered no id in time.
        Unregistered = "unregistered",
        /// The peer reads too slowly.
        Slow = "slow",
        /// What it sends, or is to be sent, does not fit into `--max-memory`.
        NoMemory = "no_memory",
        /// The peer showed no life while another claimed its id.
        Replaced = "replaced",
        /// By the rules of its protocol there was nothing more to say.
        Finished = "finished",
        /// The peer showed no life for two ping intervals.
        Silent = "silent",
        /// The server stops.
        GoingAway = "going_away",
    }
}

impl End {
    /// The payload of the Close that says it, where the server is the one to say it.
    pub(super) fn close(self) -> Option<Vec<u8>> {
        let (code, reason) = match self {
            End::Http | End::Left | End::Lost => return None,
            End::Protocol => (1002_u16, "protocol error"),
            End::NotUtf8 => (1007, "text is not UTF-8"),
            End::TooBig => (1009, "message too big"),
            End::RateLimited => (1008, "rate limit"),
            End::Unregistered => (1008, "nothing registered"),
            End::Slow => (1013, "reads too slowly"),
            End::NoMemory => (1013, "server out of memory"),
            End::Finished => (1000, ""),
            End::Replaced => (4000, "replaced"),
            End::Silent => (4001, "no sign of life"),
            End::GoingAway => (1001, "server going away"),
        };
        Some([&code.to_be_bytes(), reason.as_bytes()].concat())
    }
}

impl From<Error> for End {
    /// What an error of the codec means.
    fn from(error: Error) -> End {
        match error {
            Error::Utf8(_) => End::NotUtf8,
            Error::Capacity(_) => End::TooBig,
            _ => End::Protocol,
        }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        match broken {
            Broken::Protocol => End::Protocol,
            Broken::NotUtf8 => End::NotUtf8,
            Broken::TooBig => End::TooBig,
        }
    }
}
