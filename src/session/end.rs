//! Why a session ends, and how that is said.

use tungstenite::Utf8Bytes;
use tungstenite::error::{CapacityError, Error};
use tungstenite::protocol::frame::CloseFrame;

use crate::frame::Broken;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was answered in plain HTTP, or went before that.
    Http,
    /// The peer closed.
    Left,
    /// The connection broke, or TCP was closed without a Close frame.
    Lost,
    /// The peer broke RFC 6455.
    Protocol,
    /// The peer sent text that is not UTF-8.
    NotUtf8,
    /// The peer sent a message larger than `--max-message`.
    TooBig,
    /// The peer sent too much for too long.
    RateLimited,
    /// The peer registered no id in time.
    Unregistered,
    /// The peer reads too slowly.
    Slow,
    /// What it sends, or is to be sent, does not fit into `--max-memory`.
    NoMemory,
    /// The peer showed no life while another claimed its id.
    Replaced,
    /// The peer showed no life for two ping intervals.
    Silent,
    /// The server stops.
    GoingAway,
}

impl End {
    /// All ways a WebSocket may end.
    pub const ALL: [End; 12] = [
        End::Left,
        End::Lost,
        End::Protocol,
        End::NotUtf8,
        End::TooBig,
        End::RateLimited,
        End::Unregistered,
        End::Slow,
        End::NoMemory,
        End::Replaced,
        End::Silent,
        End::GoingAway,
    ];

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            End::Http => "http",
            End::Left => "left",
            End::Lost => "lost",
            End::Protocol => "protocol_error",
            End::NotUtf8 => "not_utf8",
            End::TooBig => "too_big",
            End::RateLimited => "rate_limited",
            End::Unregistered => "unregistered",
            End::Slow => "slow",
            End::NoMemory => "no_memory",
            End::Replaced => "replaced",
            End::Silent => "silent",
            End::GoingAway => "going_away",
        }
    }

    /// The Close frame that says it, where the server is the one to say it.
    pub(super) fn close_frame(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            End::Http | End::Left | End::Lost => return None,
            End::Protocol => (1002, "protocol error"),
            End::NotUtf8 => (1007, "text is not UTF-8"),
            End::TooBig => (1009, "message too big"),
            End::RateLimited => (1008, "rate limit"),
            End::Unregistered => (1008, "nothing registered"),
            End::Slow => (1013, "reads too slowly"),
            End::NoMemory => (1013, "server out of memory"),
            End::Replaced => (4000, "replaced"),
            End::Silent => (4001, "no sign of life"),
            End::GoingAway => (1001, "server going away"),
        };
        Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) })
    }

    /// What an error of the codec means. The one place that knows.
    pub(super) fn of(error: &Error) -> End {
        match error {
            Error::Protocol(_) | Error::AttackAttempt => End::Protocol,
            Error::Utf8(_) => End::NotUtf8,
            Error::Capacity(CapacityError::MessageTooLong { .. }) => End::TooBig,
            _ => End::Lost,
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
