//! Frames (RFC 6455 section 5.2): what a client's begins with, checked as soon as it is there, and what ours are.
//!
//! A frame that is no whole message, and no Close, goes on to tungstenite, which knows the rest of the RFC. This file
//! sees to what comes before that: that no payload is awaited which will be refused, that lengths are minimal, and
//! where a frame ends.

/// More of a message that has begun.
const CONTINUATION: u8 = 0x0;
/// A message of UTF-8.
pub const TEXT: u8 = 0x1;
/// A message of bytes.
pub const BINARY: u8 = 0x2;
/// A goodbye.
pub const CLOSE: u8 = 0x8;
/// A request for a pong.
pub const PING: u8 = 0x9;
/// The answer to a ping.
pub const PONG: u8 = 0xa;

/// The most that a control frame may carry (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// The longest control frame of a client: two bytes, a mask, a payload. The longest header is shorter.
pub const CONTROL_FRAME_BYTES_MAX: usize = 6 + CONTROL_BYTES_MAX;

/// What a frame of a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether its message ends with it.
    pub fin: bool,
    /// One of RFC 6455 section 11.8.
    pub opcode: u8,
    /// What its payload is masked with.
    pub mask: [u8; 4],
    /// The length of the header.
    pub bytes: usize,
    /// The length of the payload.
    pub payload: usize,
}

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It is not as RFC 6455 section 5 has it: 1002.
    Protocol,
    /// Its message is not UTF-8: 1007.
    NotUtf8,
    /// Its message is larger than one may be: 1009.
    TooBig,
}

impl Header {
    /// The header that these bytes begin with, if all of it is there.
    ///
    /// # Errors
    /// What is wrong with it, as soon as it can be known.
    pub fn parse(bytes: &[u8], payload_max: usize) -> Result<Option<Header>, Broken> {
        let &[first, second, ref rest @ ..] = bytes else {
            return match bytes {
                [first] if !is_first(*first) => Err(Broken::Protocol),
                _ => Ok(None),
            };
        };
        let (opcode, fin, length) = (first & 0xf, first & 0x80 != 0, usize::from(second & 0x7f));
        let is_control = opcode & 0x8 != 0;
        let is_masked = second & 0x80 != 0;
        if !is_first(first) || !is_masked || (is_control && length > CONTROL_BYTES_MAX) {
            return Err(Broken::Protocol);
        }
        let (extended, shortest) = match length {
            126 => (2, 126),
            127 => (8, 0x1_0000),
            _ => (0, 0),
        };
        let Some((extension, rest)) = rest.split_at_checked(extended) else {
            return Ok(None);
        };
        let payload = match extended {
            0 => length as u64,
            _ => extension.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if payload < shortest || payload >> 63 != 0 {
            return Err(Broken::Protocol);
        }
        let payload = usize::try_from(payload).map_err(|_| Broken::TooBig)?;
        if payload > payload_max && !is_control {
            return Err(Broken::TooBig);
        }
        let mask = rest.first_chunk().copied();
        Ok(mask.map(|mask| Header { fin, opcode, mask, bytes: 2 + extended + 4, payload }))
    }

    /// The length of the frame.
    #[allow(clippy::len_without_is_empty, reason = "a frame has a header")]
    pub fn len(&self) -> usize {
        self.bytes + self.payload
    }

    /// Whether this frame is a message, text or binary.
    pub fn is_message(&self) -> bool {
        self.fin && matches!(self.opcode, TEXT | BINARY)
    }

    /// Whether it may stand between the frames of a message (section 5.5).
    pub fn is_control(&self) -> bool {
        self.opcode & 0x8 != 0
    }

    /// Whether a frame with data may come now. `unfinished` is how much of a message has come, if one has begun.
    ///
    /// # Errors
    /// It does not continue what has begun, or continues nothing (section 5.4), or it is too much.
    pub fn check_place(&self, unfinished: Option<usize>, message_max: usize) -> Result<(), Broken> {
        if (self.opcode == CONTINUATION) != unfinished.is_some() {
            Err(Broken::Protocol)
        } else if unfinished.unwrap_or(0) + self.payload > message_max {
            Err(Broken::TooBig)
        } else {
            Ok(())
        }
    }
}

/// Whether a frame may begin with this byte: reserved bits and opcodes are for extensions, and control frames are
/// never fragmented.
fn is_first(first: u8) -> bool {
    first & 0x70 == 0 && matches!(first & 0xf, 0x0..=0x2) || matches!(first, 0x88..=0x8a)
}

/// Whether this may be the payload of a Close: a code that may be sent and a reason, or nothing (section 5.5.1; the
/// codes are those of section 7.4 and, since then, of IANA's registry).
///
/// # Errors
/// What is wrong with it.
pub fn check_close(payload: &[u8]) -> Result<(), Broken> {
    match payload.split_first_chunk() {
        None if payload.is_empty() => Ok(()),
        Some((code, reason)) => match u16::from_be_bytes(*code) {
            1000..=1003 | 1007..=1014 | 3000..=4999 => {
                str::from_utf8(reason).map(|_| ()).map_err(|_| Broken::NotUtf8)
            }
            _ => Err(Broken::Protocol),
        },
        None => Err(Broken::Protocol),
    }
}

/// Takes the mask off (section 5.3).
#[inline]
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    // In blocks that the compiler makes vectors of.
    let mut blocks = payload.chunks_exact_mut(16);
    for block in &mut blocks {
        for (i, byte) in block.iter_mut().enumerate() {
            *byte ^= mask[i % 4];
        }
    }
    for (i, byte) in blocks.into_remainder().iter_mut().enumerate() {
        *byte ^= mask[i % 4];
    }
}

/// Appends a frame of ours, which is whole and unmasked.
pub fn push(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let length = payload.len();
    match length {
        0..=125 => out.extend([0x80 | opcode, length as u8]),
        126..=0xffff => {
            let [high, low] = (length as u16).to_be_bytes();
            out.extend([0x80 | opcode, 126, high, low]);
        }
        _ => {
            out.extend([0x80 | opcode, 127]);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Returns the length of the frame of ours, as [`push`] appends it, that these bytes begin with.
pub fn len_of_ours(bytes: &[u8]) -> usize {
    let big_endian = |bytes: &[u8]| bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    match bytes[1] {
        126 => 4 + big_endian(&bytes[2..4]),
        127 => 10 + big_endian(&bytes[2..10]),
        length => 2 + usize::from(length),
    }
}

/// What [`push`] appends for a payload of this length.
pub fn len(payload: usize) -> usize {
    let header = match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    header + payload
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8]) -> Result<Option<Header>, Broken> {
        // It is known as soon as it can be, and what was said once is not taken back.
        let said = (0..bytes.len()).find_map(|cut| Header::parse(&bytes[..cut], 1000).transpose());
        let whole = Header::parse(bytes, 1000);
        assert!(said.is_none_or(|said| said.map(Some) == whole), "{bytes:?}");
        whole
    }

    #[test]
    fn headers() {
        let text = Header { fin: true, opcode: TEXT, mask: [1, 2, 3, 4], bytes: 6, payload: 5 };
        assert_eq!(header(&[0x81, 0x85, 1, 2, 3, 4, b'x']), Ok(Some(text)));
        let longer = Header { payload: 126, bytes: 8, ..text };
        assert_eq!(header(&[0x81, 0xfe, 0, 126, 1, 2, 3, 4]), Ok(Some(longer)));
        let fragment = Header { fin: false, opcode: 0, payload: 0, ..text };
        assert_eq!(header(&[0x00, 0x80, 1, 2, 3, 4]), Ok(Some(fragment)));
        for incomplete in [&[][..], &[0x81], &[0x81, 0x85, 1, 2, 3], &[0x81, 0xfe, 1], &[0x89, 0x80]] {
            assert_eq!(header(incomplete), Ok(None), "{incomplete:?}");
        }
    }

    #[test]
    fn broken_headers() {
        for broken in [
            // Reserved bits and opcodes.
            &[0xc1][..],
            &[0xa1],
            &[0x91],
            &[0x83],
            &[0x87],
            &[0x8b],
            &[0x8f],
            // Fragmented control frames, and longer ones than may be.
            &[0x08],
            &[0x09],
            &[0x0a],
            &[0x89, 0xfe],
            &[0x88, 0xff],
            // No mask.
            &[0x81, 0x05],
            &[0x81, 0x7e],
            // A shorter length would have done.
            &[0x81, 0xfe, 0, 125],
            &[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            // Section 5.2: the most significant bit is 0.
            &[0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(header(broken), Err(Broken::Protocol), "{broken:?}");
            assert_eq!(Header::parse(&broken[..broken.len() - 1], 1000), Ok(None), "{broken:?}");
        }
        assert_eq!(header(&[0x81, 0xfe, 3, 233]), Err(Broken::TooBig));
        assert_eq!(header(&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]), Err(Broken::TooBig));
    }

    #[test]
    fn the_order_of_fragments() {
        let frame = |opcode, payload| Header { fin: true, opcode, mask: [0; 4], bytes: 6, payload };
        for (unfinished, opcode, payload, place) in [
            (None, TEXT, 10, Ok(())),
            (Some(3), CONTINUATION, 7, Ok(())),
            (Some(10), CONTINUATION, 0, Ok(())),
            (Some(4), CONTINUATION, 7, Err(Broken::TooBig)),
            (Some(4), BINARY, 1, Err(Broken::Protocol)),
            (None, CONTINUATION, 1, Err(Broken::Protocol)),
        ] {
            assert_eq!(frame(opcode, payload).check_place(unfinished, 10), place);
        }
    }

    #[test]
    fn what_a_close_may_say() {
        let close = |code: u16, reason: &[u8]| check_close(&[&code.to_be_bytes(), reason].concat());
        assert_eq!(check_close(b""), Ok(()));
        assert_eq!(check_close(b"x"), Err(Broken::Protocol));
        for code in [1000, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 4999] {
            assert_eq!(close(code, "日本".as_bytes()), Ok(()), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535] {
            assert_eq!(close(code, b""), Err(Broken::Protocol), "{code}");
        }
        assert_eq!(close(1000, b"\xff"), Err(Broken::NotUtf8));
    }

    #[test]
    fn a_mask_goes_round() {
        for length in 0..40 {
            let mut payload: Vec<u8> = (0..length).map(|i| b"abcd"[i % 4]).collect();
            unmask(&mut payload, *b"abcd");
            assert_eq!(payload, vec![0; length]);
        }
    }

    #[test]
    fn frames_of_ours() {
        for payload in [0, 1, 125, 126, 0xffff, 0x1_0000] {
            let mut out = Vec::new();
            push(&mut out, TEXT, &vec![b'x'; payload]);
            assert_eq!(out.len(), len(payload));
            assert_eq!(out.len(), len_of_ours(&out));
            // With a mask it would be a client's.
            out[1] |= 0x80;
            let header = Header::parse(&out, payload).map(|header| header.map(|header| header.payload));
            assert_eq!(header, Ok(if payload < 4 { None } else { Some(payload) }));
        }
    }
}
