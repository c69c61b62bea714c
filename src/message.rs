//! One WebSocket message, as a session receives it and a protocol handles it.

use std::str;

/// A complete message (RFC 6455 section 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

impl<'a> Message<'a> {
    /// Returns the size of the payload in bytes.
    pub fn bytes_len(self) -> usize {
        match self {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
        }
    }

    /// Returns the text of a text message, or of a binary message that is UTF-8.
    ///
    /// Some client libraries send JSON in binary messages. `None`: the message is not UTF-8.
    pub fn text(self) -> Option<&'a str> {
        match self {
            Message::Text(text) => Some(text),
            Message::Binary(bytes) => str::from_utf8(bytes).ok(),
        }
    }
}
