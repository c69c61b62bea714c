//! JSON (RFC 8259), as far as every message goes through it: finding the fields of an object, and writing a string.
//!
//! What the peers tell each other is checked for syntax, to any depth, and never looked into: a value is the text
//! that it was written as. Escape sequences are left to serde_json, which also judges this file in its tests.

use std::borrow::Cow;

/// Reads an object, and hands over the key and the value of each field, in order. A key that is no Unicode
/// (`"\ud800"`) is nobody's, and its field is left out. `None`: the text is no JSON object.
pub fn object<'a>(text: &'a str, mut field: impl FnMut(&str, &'a str)) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = token(bytes, 0, b'{')?;
    if let Some(end) = token(bytes, at, b'}') {
        return nothing(bytes, end);
    }
    loop {
        let key = skip_whitespace(bytes, at);
        let (key_end, is_escaped) = skip_string(bytes, key)?;
        let value = skip_whitespace(bytes, token(bytes, key_end, b':')?);
        let value_end = skip_value(bytes, value)?;
        let value_text = &text[value..value_end];
        if !is_escaped {
            field(&text[key + 1..key_end - 1], value_text);
        } else if let Some(key) = string(&text[key..key_end]) {
            field(&key, value_text);
        }
        match token(bytes, value_end, b',') {
            Some(next) => at = next,
            None => return nothing(bytes, token(bytes, value_end, b'}')?),
        }
    }
}

/// The values of those fields of an object that have a place; of equal keys the last counts, and `null` is a missing one.
/// `None`: the text is no JSON object.
pub fn fields<const N: usize>(
    text: &str,
    place: impl Fn(&str) -> Option<usize>,
) -> Option<[Option<&str>; N]> {
    let mut values = [None; N];
    object(text, |key, value| {
        if let Some(place) = place(key) {
            values[place] = Some(value).filter(|value| *value != "null");
        }
    })?;
    Some(values)
}

/// Reads an array, and hands over its elements until it is told `false`. `None`: the text is no JSON array.
pub fn array<'a>(text: &'a str, mut element: impl FnMut(&'a str) -> bool) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = token(bytes, 0, b'[')?;
    if let Some(end) = token(bytes, at, b']') {
        return nothing(bytes, end);
    }
    loop {
        let value = skip_whitespace(bytes, at);
        let value_end = skip_value(bytes, value)?;
        if !element(&text[value..value_end]) {
            return Some(());
        }
        match token(bytes, value_end, b',') {
            Some(next) => at = next,
            None => return nothing(bytes, token(bytes, value_end, b']')?),
        }
    }
}

/// The string that a JSON text is, if it is one and is valid Unicode. Unescaped texts, the rule, are borrowed.
pub fn string(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if plain(inner.as_bytes()) == inner.len() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(text).ok().map(Cow::Owned)
}

/// Writes a string, with its quotes.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    // Always appending eight and taking back what is too much costs less than a copy of any other length.
    while let Some((word, after)) = rest.split_first_chunk() {
        let plain = plain_in(*word);
        out.extend_from_slice(word);
        if plain == word.len() {
            rest = after;
            continue;
        }
        out.truncate(out.len() - (word.len() - plain));
        push_escape(out, word[plain]);
        rest = &rest[plain + 1..];
    }
    for byte in rest {
        if is_plain(*byte) { out.push(*byte) } else { push_escape(out, *byte) }
    }
    out.push(b'"');
}

#[inline]
fn push_escape(out: &mut Vec<u8>, byte: u8) {
    if let b'"' | b'\\' = byte {
        out.extend_from_slice(&[b'\\', byte]);
    } else {
        push_control(out, byte);
    }
}

/// The escape sequences of the control characters (RFC 8259 section 7), by their codes.
const CONTROL_ESCAPES: [&str; 32] = [
    "\\u0000", "\\u0001", "\\u0002", "\\u0003", "\\u0004", "\\u0005", "\\u0006", "\\u0007", "\\b", "\\t",
    "\\n", "\\u000b", "\\f", "\\r", "\\u000e", "\\u000f", "\\u0010", "\\u0011", "\\u0012", "\\u0013",
    "\\u0014", "\\u0015", "\\u0016", "\\u0017", "\\u0018", "\\u0019", "\\u001a", "\\u001b", "\\u001c",
    "\\u001d", "\\u001e", "\\u001f",
];

#[cold]
fn push_control(out: &mut Vec<u8>, byte: u8) {
    out.extend_from_slice(CONTROL_ESCAPES[usize::from(byte)].as_bytes());
}

/// Whether a byte means itself in a string: it is no quote, no backslash and no control character.
fn is_plain(byte: u8) -> bool {
    !matches!(byte, ..b' ' | b'"' | b'\\')
}

/// How many of these bytes do, from the front.
#[inline]
fn plain_in(word: [u8; 8]) -> usize {
    const fn each(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    // Marks the bytes below n by their highest bit, which they borrow from the byte above when n is subtracted. A
    // byte above may be marked for that, but the lowest mark is right.
    let below = |word: u64, n: u8| word.wrapping_sub(each(n)) & !word;
    let word = u64::from_le_bytes(word);
    // One bit turned, the quote (0x22) stands next to the control characters.
    let marks = (below(word ^ each(0x02), 0x21) | below(word ^ each(b'\\'), 1)) & each(0x80);
    marks.trailing_zeros() as usize / 8
}

/// The same for any number of bytes.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks();
    for (i, word) in words.iter().enumerate() {
        let plain = plain_in(*word);
        if plain < word.len() {
            return i * word.len() + plain;
        }
    }
    bytes.len() - rest.len() + rest.iter().take_while(|byte| is_plain(**byte)).count()
}

// ---- Reading. Each of these takes where something begins and returns where it ends, or `None` if it is no JSON. ----

fn skip_whitespace(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = bytes.get(at) {
        at += 1;
    }
    at
}

/// This byte, and whitespace before it.
fn token(bytes: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = skip_whitespace(bytes, at);
    (bytes.get(at) == Some(&byte)).then_some(at + 1)
}

/// The end of the text.
fn nothing(bytes: &[u8], at: usize) -> Option<()> {
    (skip_whitespace(bytes, at) == bytes.len()).then_some(())
}

fn skip_key(bytes: &[u8], at: usize) -> Option<usize> {
    token(bytes, skip_string(bytes, skip_whitespace(bytes, at))?.0, b':')
}

/// A value of any kind. Depth costs a byte a level, and no stack.
fn skip_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    // What closes the innermost object or array, and those around it.
    let (mut closing, mut outer) = (None, Vec::new());
    loop {
        at = skip_whitespace(bytes, at);
        at = match *bytes.get(at)? {
            b'"' => skip_string(bytes, at)?.0,
            open @ (b'{' | b'[') => {
                let close = if open == b'{' { b'}' } else { b']' };
                match token(bytes, at + 1, close) {
                    Some(end) => end,
                    None => {
                        outer.extend(closing.replace(close));
                        at = if open == b'{' { skip_key(bytes, at + 1)? } else { at + 1 };
                        continue;
                    }
                }
            }
            _ => skip_number_or_name(bytes, at)?,
        };
        // With a value may end what it is in.
        while let Some(close) = closing {
            if let Some(next) = token(bytes, at, b',') {
                at = if close == b'}' { skip_key(bytes, next)? } else { next };
                break;
            }
            at = token(bytes, at, close)?;
            closing = outer.pop();
        }
        if closing.is_none() {
            return Some(at);
        }
    }
}

/// A string, and whether there are escape sequences in it.
#[inline(always)]
fn skip_string(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut is_escaped = false;
    let mut at = at + 1 + plain(&bytes[at + 1..]);
    loop {
        match bytes.get(at)? {
            b'"' => return Some((at + 1, is_escaped)),
            b'\\' => is_escaped = true,
            _ => return None,
        }
        at = match bytes.get(at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at + 2,
            b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at + 6,
            _ => return None,
        };
        // Lines end in two.
        if bytes.get(at) != Some(&b'\\') {
            at += plain(&bytes[at..]);
        }
    }
}

fn skip_number_or_name(bytes: &[u8], at: usize) -> Option<usize> {
    for name in [&b"null"[..], b"true", b"false"] {
        if bytes[at..].starts_with(name) {
            return Some(at + name.len());
        }
    }
    let any_of = |at, set: &[u8]| at + usize::from(bytes.get(at).is_some_and(|byte| set.contains(byte)));
    let minus = any_of(at, b"-");
    let zero = any_of(minus, b"0");
    let mut at = if zero > minus { zero } else { skip_digits(bytes, minus)? };
    let point = any_of(at, b".");
    if point > at {
        at = skip_digits(bytes, point)?;
    }
    let exponent = any_of(at, b"eE");
    if exponent > at {
        at = skip_digits(bytes, any_of(exponent, b"+-"))?;
    }
    Some(at)
}

fn skip_digits(bytes: &[u8], at: usize) -> Option<usize> {
    let digits = bytes.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then_some(at + digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IgnoredAny;
    use serde_json::{Map, Value};

    /// Whether serde_json takes a text for the same thing, and if it is an object with nothing that a `Value` cannot
    /// hold, finds the same fields.
    fn agrees(text: &str) {
        let mut fields = Map::new();
        let is_object = object(text, |key, value| {
            if let Ok(value) = serde_json::from_str(value) {
                fields.insert(key.to_owned(), value);
            }
        });
        let is_array = array(text, |_| true);
        let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
        let begins_with = |byte| text.trim_ascii_start().starts_with(byte);
        assert_eq!(is_object.is_some(), is_json && begins_with('{'), "{text:?}");
        assert_eq!(is_array.is_some(), is_json && begins_with('['), "{text:?}");
        if let Ok(Value::Object(same)) = serde_json::from_str(text) {
            assert_eq!(fields, same, "{text:?}");
        }
    }

    #[test]
    fn serde_json_agrees_on_every_text_near_a_good_one() {
        let good = [
            r#"{"type":"candidateAdd","id":"A","candidate":{"candidate":"candidate:1 1 udp","sdpMLineIndex":0}}"#,
            r#" { "a" : [ 1 , -0.5e+10 , [ ] , { } , [[{"b":{}}]] ] , "c" : true , "d":false,"e" : null } "#,
            r#"[0,-1,10,1.0,1e1,1E-1,"",["\"\\\/\b\f\n\r\tA\ud800"],"狼煙",truefalse]"#,
            r#"{"\u0074ype":"offer","type":"a","type":"b","long string of plain characters":"\\\"","":0}"#,
        ];
        let bytes = b"\"\\{}[]:,0123456789+-.eEabftnu\x00\x1f\x20\n\x7f";
        for good in good.map(str::as_bytes) {
            for at in 0..=good.len() {
                let (before, after) = good.split_at(at);
                let mut near =
                    vec![before.to_vec(), after.to_vec(), [before, &after[after.len().min(1)..]].concat()];
                for byte in bytes {
                    near.push([before, &[*byte], after].concat());
                    near.push([before, &[*byte], &after[after.len().min(1)..]].concat());
                }
                for text in near.iter().filter_map(|text| str::from_utf8(text).ok()) {
                    agrees(text);
                }
            }
        }
    }

    #[test]
    fn depth_is_no_limit() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let (open, close) = (open.repeat(20_000), close.repeat(20_000));
            agrees(&format!("{open}0{close}"));
            agrees(&format!("{open}0{}", &close[1..]));
            agrees(&open);
        }
    }

    #[test]
    fn arrays_are_read_as_far_as_wanted() {
        let mut read = Vec::new();
        let mut first_two = |element| {
            read.push(element);
            read.len() < 2
        };
        assert_eq!(array(r#"[{"a":1}, 2 ,"#, &mut first_two), Some(()));
        assert_eq!(read, [r#"{"a":1}"#, "2"]);
    }

    #[test]
    fn strings() {
        assert_eq!(string(r#""plain""#), Some("plain".into()));
        assert_eq!(string(r#""\u0041\n\\""#), Some("A\n\\".into()));
        for text in ["1", "null", r#"[""]"#, r#"["\\"]"#, r#""\ud800""#] {
            assert_eq!(string(text), None, "{text}");
        }
    }

    #[test]
    fn strings_are_written_as_serde_json_writes_them() {
        let all: String = (0..0x250).filter_map(char::from_u32).collect();
        for text in [
            "",
            "a",
            "\"",
            "\\",
            "a\"b\\c\"",
            "\"\"\"",
            "line\nbreak \"",
            "\0\u{1f}\u{7f}",
            "狼煙\"狼煙",
            &all,
        ] {
            let mut written = Vec::new();
            push_string(&mut written, text);
            assert_eq!(written, serde_json::to_vec(text).unwrap());
        }
    }

    #[test]
    fn what_is_special_is_found_wherever_it_stands() {
        for special in ["\"", "\\", "\0", "\u{1f}"] {
            for at in 0..20 {
                for around in ["!", "~", "\u{7f}", "#", "[", "]", "é"] {
                    let before = around.repeat(at);
                    let text = format!("{before}{special}{}", around.repeat(20));
                    assert_eq!(plain(text.as_bytes()), before.len(), "{text:?}");
                }
            }
        }
    }
}
