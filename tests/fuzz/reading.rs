//! A naive reader of RFC 6455.

use noroshi::session::CloseReason;

use noroshi_test_support::pipe::{REQUEST, TEXT};

pub const MESSAGE_BYTES_MAX: usize = 2048;
pub const BINARY: u8 = 0x82;

/// The content of a peer's bytes.
#[derive(Default)]
pub struct Reading {
    pub upgraded: bool,
    /// Bytes that are not yet parsed.
    pub bytes: Vec<u8>,
    /// The fragments of an incomplete message.
    pub fragments: Option<Message>,
    pub messages: Vec<Message>,
    pub pings: Vec<Vec<u8>>,
    pub end: Option<CloseReason>,
    /// The payload of the reply to the peer's Close frame.
    pub reply: Option<Vec<u8>>,
}

pub struct Message {
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn parts(&self) -> (u8, &[u8]) {
        (self.first, &self.payload)
    }
}

impl Reading {
    /// Returns whether no frame or message is incomplete.
    pub fn is_complete(&self) -> bool {
        self.upgraded && self.bytes.is_empty() && self.fragments.is_none()
    }

    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if !self.upgraded && self.bytes.len() >= REQUEST.len() {
            self.upgraded = true;
            self.bytes.drain(..REQUEST.len());
        }
        while self.upgraded && self.end.is_none() {
            match self.frame() {
                Ok(true) => {}
                Ok(false) => break,
                Err(end) => self.end = Some(end),
            }
        }
    }

    /// Parses one complete frame. Reports an error as early as it can be known.
    pub fn frame(&mut self) -> Result<bool, CloseReason> {
        let bytes = &self.bytes[..];
        let Some(&first) = bytes.first() else { return Ok(false) };
        let fin = first & 0x80 != 0;
        let opcode = first & 0x0f;
        let is_control = opcode >= 8;
        if first & 0x70 != 0 || !matches!(opcode, 0 | 1 | 2 | 8 | 9 | 10) || (is_control && !fin) {
            return Err(CloseReason::Protocol);
        }
        let Some(&second) = bytes.get(1) else { return Ok(false) };
        let short = second & 0x7f;
        if second & 0x80 == 0 || (is_control && short > 125) {
            return Err(CloseReason::Protocol);
        }
        let width = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if bytes.len() < 2 + width {
            return Ok(false);
        }
        let length = match width {
            0 => u64::from(short),
            _ => bytes[2..2 + width].iter().fold(0, |length, byte| length * 256 + u64::from(*byte)),
        };
        let fits_less = (width == 2 && length < 126) || (width == 8 && length < 65536);
        if fits_less || length >= 1 << 63 {
            return Err(CloseReason::Protocol);
        }
        if length > MESSAGE_BYTES_MAX as u64 {
            return Err(CloseReason::TooBig);
        }
        let header = 2 + width + 4;
        let length = length as usize;
        if bytes.len() < header {
            return Ok(false);
        }
        if !is_control {
            if (opcode == 0) != self.fragments.is_some() {
                return Err(CloseReason::Protocol);
            }
            let begun = self.fragments.as_ref().map_or(0, |message| message.payload.len());
            if begun + length > MESSAGE_BYTES_MAX {
                return Err(CloseReason::TooBig);
            }
        }
        if bytes.len() < header + length {
            return Ok(false);
        }
        let mask = bytes[header - 4..header].iter().cycle();
        let payload: Vec<u8> = bytes[header..header + length].iter().zip(mask).map(|(a, b)| a ^ b).collect();
        self.bytes.drain(..header + length);
        match opcode {
            8 => return Err(self.close(payload)),
            9 => self.pings.push(payload),
            10 => {}
            _ => {
                let mut message =
                    self.fragments.take().unwrap_or(Message { first: 0x80 | opcode, payload: vec![] });
                message.payload.extend(payload);
                if message.first == TEXT
                    && let Err(error) = std::str::from_utf8(&message.payload)
                    && (fin || error.error_len().is_some())
                {
                    return Err(CloseReason::NotUtf8);
                }
                if fin {
                    self.messages.push(message);
                } else {
                    self.fragments = Some(message);
                }
            }
        }
        Ok(true)
    }

    pub fn close(&mut self, payload: Vec<u8>) -> CloseReason {
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        if payload.len() == 1
            || code.is_some_and(|code| !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999))
        {
            return CloseReason::Protocol;
        }
        if payload.len() > 2 && std::str::from_utf8(&payload[2..]).is_err() {
            return CloseReason::NotUtf8;
        }
        self.reply = Some(payload);
        CloseReason::Left
    }
}
