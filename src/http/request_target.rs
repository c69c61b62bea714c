//! Request targets: path and query (RFC 9112 section 3.2).

use std::borrow::Cow;

use percent_encoding::percent_encode_byte;

use super::query::Query;

/// The schemes of a request target in absolute form.
const SCHEMES: [&str; 4] = ["http", "https", "ws", "wss"];

/// Splits a request target into its normalized path and its query.
///
/// Scheme and host of an absolute form (RFC 9112 section 3.2.2) are ignored; RFC 6455 section 4.2.1 allows a client to
/// write the URL of a WebSocket there.
pub(super) fn path_and_query(target: &str) -> (Cow<'_, str>, Query) {
    let origin_form = strip_scheme_and_host(target);
    let without_fragment = origin_form.split('#').next().unwrap_or_default();
    let (path, query) = without_fragment.split_once('?').unwrap_or((without_fragment, ""));
    (decode_unreserved(path), Query::new(query))
}

fn strip_scheme_and_host(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else { return target };
    if !SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return target;
    }
    let host_end = rest.find(['/', '?']).unwrap_or(rest.len());
    &rest[host_end..]
}

/// Returns whether a byte means the same with and without percent-encoding.
///
/// Source: RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Decodes the unreserved characters of a path, and nothing else.
///
/// Source: RFC 3986 section 6.2.2.2.
fn decode_unreserved(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(percent) = rest.find('%') {
        decoded.push_str(&rest[..percent]);
        rest = &rest[percent..];
        match encoded_byte(rest) {
            Some(byte) => {
                if is_unreserved(byte) {
                    decoded.push(char::from(byte));
                } else {
                    decoded.push_str(percent_encode_byte(byte));
                }
                rest = &rest[3..];
            }
            // A percent sign without two hexadecimal digits stands for itself.
            None => {
                decoded.push('%');
                rest = &rest[1..];
            }
        }
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Returns the byte that the first three characters encode (`%7E`).
fn encoded_byte(text: &str) -> Option<u8> {
    let digits = text.get(1..3)?;
    // `from_str_radix` accepts a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
