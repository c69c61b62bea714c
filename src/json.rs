//! Reads and writes the JSON (RFC 8259) that every message passes through.
//!
//! Reading finds the fields of an object or the elements of an array and checks their syntax. A value is returned as the
//! text that it was written as, because payloads of peers are forwarded and never interpreted. Nesting costs one byte of
//! memory a level and no stack, so no depth limit is needed.
//!
//! Compared with serde_json 1.0.154 behind the same functions (`RawValue` for values, `to_writer` for strings), in
//! instructions, measured with valgrind's callgrind. Neither allocates, except for one allocation to forward a message:
//!
//! | message | parse: here | serde_json | quote: here | serde_json | forward, in total: here | serde_json |
//! |---|---|---|---|---|---|---|
//! | candidate of 200 bytes | 2,460 | 3,210 | 1,420 | 2,510 | 6,570 | 8,520 |
//! | SDP of 5,000 bytes | 27,900 | 41,700 | 33,900 | 62,700 | 72,800 | 109,100 |
//!
//! The total is that of `cargo run --release --example bench`. serde_json would make the binary 9 KB smaller and this file
//! 166 code lines shorter. Strings are scanned eight bytes at a time. Escape sequences are decoded by serde_json, which also is
//! the reference in the tests.

use std::borrow::Cow;

/// Parses an object and passes each key and raw value to a callback, in order.
///
/// A field whose key is not valid Unicode (`"\ud800"`) is skipped. Returns `None` if the text is not a JSON object; the
/// callback may have been called before.
pub fn parse_object<'a>(text: &'a str, mut on_field: impl FnMut(&str, &'a str)) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = skip_byte(bytes, 0, b'{')?;
    if let Some(end) = skip_byte(bytes, at, b'}') {
        return expect_end(bytes, end);
    }
    loop {
        let key_start = skip_whitespace(bytes, at);
        let (key_end, has_escapes) = skip_string(bytes, key_start)?;
        let colon_end = skip_byte(bytes, key_end, b':')?;
        let value_start = skip_whitespace(bytes, colon_end);
        let value_end = skip_value(bytes, value_start)?;
        let value = &text[value_start..value_end];
        if !has_escapes {
            on_field(&text[key_start + 1..key_end - 1], value);
        } else if let Some(key) = parse_string(&text[key_start..key_end]) {
            on_field(&key, value);
        }
        match skip_byte(bytes, value_end, b',') {
            Some(next) => at = next,
            None => return expect_end(bytes, skip_byte(bytes, value_end, b'}')?),
        }
    }
}

/// Parses an object and returns the raw values of the fields that `index_of` selects.
///
/// The last of several fields with the same key counts. `null` is returned as a missing field. Returns `None` if the text
/// is not a JSON object.
pub fn parse_fields<const N: usize>(
    text: &str,
    index_of: impl Fn(&str) -> Option<usize>,
) -> Option<[Option<&str>; N]> {
    let mut values = [None; N];
    parse_object(text, |key, value| {
        if let Some(index) = index_of(key) {
            values[index] = Some(value).filter(|value| *value != "null");
        }
    })?;
    Some(values)
}

/// Returns the text of an object without its fields of this name.
///
/// All other fields stay as they are written. Returns `None` if the text is not a JSON object.
pub fn remove_fields(text: &str, name: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut kept = String::with_capacity(text.len());
    kept.push('{');
    let mut at = skip_byte(bytes, 0, b'{')?;
    if let Some(end) = skip_byte(bytes, at, b'}') {
        expect_end(bytes, end)?;
        return Some("{}".to_owned());
    }
    loop {
        let key_start = skip_whitespace(bytes, at);
        let (key_end, _) = skip_string(bytes, key_start)?;
        let colon_end = skip_byte(bytes, key_end, b':')?;
        let value_start = skip_whitespace(bytes, colon_end);
        let value_end = skip_value(bytes, value_start)?;
        if parse_string(&text[key_start..key_end]).as_deref() != Some(name) {
            if kept.len() > 1 {
                kept.push(',');
            }
            kept.push_str(&text[key_start..value_end]);
        }
        match skip_byte(bytes, value_end, b',') {
            Some(next) => at = next,
            None => {
                expect_end(bytes, skip_byte(bytes, value_end, b'}')?)?;
                kept.push('}');
                return Some(kept);
            }
        }
    }
}

/// Parses an array and passes each raw element to a callback until it returns `false`.
///
/// Returns `None` if the text is not a JSON array, as far as it was read.
pub fn parse_array<'a>(text: &'a str, mut on_element: impl FnMut(&'a str) -> bool) -> Option<()> {
    let bytes = text.as_bytes();
    let mut at = skip_byte(bytes, 0, b'[')?;
    if let Some(end) = skip_byte(bytes, at, b']') {
        return expect_end(bytes, end);
    }
    loop {
        let value_start = skip_whitespace(bytes, at);
        let value_end = skip_value(bytes, value_start)?;
        if !on_element(&text[value_start..value_end]) {
            return Some(());
        }
        match skip_byte(bytes, value_end, b',') {
            Some(next) => at = next,
            None => return expect_end(bytes, skip_byte(bytes, value_end, b']')?),
        }
    }
}

/// Parses a string, or returns `None` if the text is not one or not valid Unicode.
///
/// A string without escape sequences, the common case, is borrowed.
pub fn parse_string(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if count_plain(inner.as_bytes()) == inner.len() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(text).ok().map(Cow::Owned)
}

/// Returns whether parsers with common limits accept a value inside a message: at most 100 levels of objects and arrays, numbers in
/// the range of a double, and valid Unicode.
///
/// The functions above accept more, and forward it as it is. A client that parses with serde_json would reject the whole message: it
/// accepts 127 levels.
pub fn is_portable(value: &str) -> bool {
    const LEVELS_OF_MESSAGE: usize = 27;
    let message = ["[".repeat(LEVELS_OF_MESSAGE), value.to_owned(), "]".repeat(LEVELS_OF_MESSAGE)].concat();
    serde_json::from_str::<serde_json::Value>(&message).is_ok()
}

/// Writes a JSON object into a buffer that is usually large enough, so that a message takes one allocation.
#[derive(Debug)]
pub struct ObjectWriter(Vec<u8>);

impl ObjectWriter {
    /// The bytes of the names, types and separators of a message.
    const STRUCTURE_BYTES: usize = 96;

    /// Starts an object with `prefix`. `bytes` is the length of the values that follow.
    pub fn new(prefix: &str, bytes: usize) -> ObjectWriter {
        let mut json = Vec::with_capacity(Self::STRUCTURE_BYTES + bytes);
        json.extend_from_slice(prefix.as_bytes());
        ObjectWriter(json)
    }

    /// Appends JSON text.
    pub fn text(mut self, text: &str) -> ObjectWriter {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends a string with its quotes.
    pub fn string(mut self, value: &str) -> ObjectWriter {
        push_string(&mut self.0, value);
        self
    }

    /// Ends the object.
    pub fn finish(mut self) -> String {
        self.0.push(b'}');
        String::from_utf8(self.0).expect("strings and JSON texts are UTF-8")
    }
}

/// Appends a string with its quotes and escape sequences.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    // A copy of always eight bytes, truncated afterwards, is cheaper than a copy of varying length.
    while let Some((word, after)) = rest.split_first_chunk() {
        let plain = count_plain_in_word(*word);
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
        if is_plain(*byte) {
            out.push(*byte);
        } else {
            push_escape(out, *byte);
        }
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

/// The escape sequences of the control characters (RFC 8259 section 7), indexed by code.
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

/// Returns whether a byte stands for itself in a string: not a quote, a backslash or a control character.
fn is_plain(byte: u8) -> bool {
    !matches!(byte, ..b' ' | b'"' | b'\\')
}

/// Counts the plain bytes before the first other one in a word of eight bytes.
#[inline]
fn count_plain_in_word(word: [u8; 8]) -> usize {
    const fn repeat(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    // Sets the highest bit of each byte below `limit`, by the borrow of a subtraction. The borrow may also mark the byte
    // above a marked one, but the lowest mark is correct.
    let bytes_below = |word: u64, limit: u8| word.wrapping_sub(repeat(limit)) & !word;
    let word = u64::from_le_bytes(word);
    // With bit 1 flipped, the quote (0x22) becomes 0x20, next to the control characters, which stay below 0x20.
    let quotes_and_controls = bytes_below(word ^ repeat(0x02), 0x21);
    let backslashes = bytes_below(word ^ repeat(b'\\'), 1);
    let marks = (quotes_and_controls | backslashes) & repeat(0x80);
    marks.trailing_zeros() as usize / 8
}

/// Counts the plain bytes before the first other one.
#[inline]
fn count_plain(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let plain = count_plain_in_word(*word);
        if plain < word.len() {
            return index * word.len() + plain;
        }
    }
    let plain_in_rest = rest.iter().take_while(|byte| is_plain(**byte)).count();
    bytes.len() - rest.len() + plain_in_rest
}

// ---- Scanning. Each function takes the offset where an item begins and returns the offset behind it, or `None` if the
// syntax is wrong. ----

fn skip_whitespace(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = bytes.get(at) {
        at += 1;
    }
    at
}

/// Skips whitespace and then this byte.
fn skip_byte(bytes: &[u8], at: usize, byte: u8) -> Option<usize> {
    let at = skip_whitespace(bytes, at);
    (bytes.get(at) == Some(&byte)).then_some(at + 1)
}

/// Checks that only whitespace follows.
fn expect_end(bytes: &[u8], at: usize) -> Option<()> {
    (skip_whitespace(bytes, at) == bytes.len()).then_some(())
}

/// Skips a key and its colon.
fn skip_key(bytes: &[u8], at: usize) -> Option<usize> {
    let key_start = skip_whitespace(bytes, at);
    let (key_end, _) = skip_string(bytes, key_start)?;
    skip_byte(bytes, key_end, b':')
}

/// Skips a value of any type, without recursion.
fn skip_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    // The byte that closes the innermost open object or array, and the bytes that close those around it.
    let mut closing = None;
    let mut outer_closing = Vec::new();
    loop {
        at = skip_whitespace(bytes, at);
        at = match *bytes.get(at)? {
            b'"' => skip_string(bytes, at)?.0,
            open @ (b'{' | b'[') => {
                let close = if open == b'{' { b'}' } else { b']' };
                match skip_byte(bytes, at + 1, close) {
                    Some(end) => end,
                    None => {
                        outer_closing.extend(closing.replace(close));
                        at = if open == b'{' { skip_key(bytes, at + 1)? } else { at + 1 };
                        continue;
                    }
                }
            }
            _ => skip_number_or_literal(bytes, at)?,
        };
        // The end of a value may also be the end of the objects and arrays around it.
        while let Some(close) = closing {
            if let Some(next) = skip_byte(bytes, at, b',') {
                at = if close == b'}' { skip_key(bytes, next)? } else { next };
                break;
            }
            at = skip_byte(bytes, at, close)?;
            closing = outer_closing.pop();
        }
        if closing.is_none() {
            return Some(at);
        }
    }
}

/// Skips a string, and returns also whether it contains escape sequences.
#[inline(always)]
fn skip_string(bytes: &[u8], at: usize) -> Option<(usize, bool)> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut has_escapes = false;
    let mut at = at + 1 + count_plain(&bytes[at + 1..]);
    loop {
        match bytes.get(at)? {
            b'"' => return Some((at + 1, has_escapes)),
            b'\\' => has_escapes = true,
            _ => return None,
        }
        at = match bytes.get(at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at + 2,
            b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at + 6,
            _ => return None,
        };
        // Each line of an SDP ends in two escape sequences, `\r\n`: skip the scan for plain bytes between them.
        if bytes.get(at) != Some(&b'\\') {
            at += count_plain(&bytes[at..]);
        }
    }
}

fn skip_number_or_literal(bytes: &[u8], at: usize) -> Option<usize> {
    for literal in [&b"null"[..], b"true", b"false"] {
        if bytes[at..].starts_with(literal) {
            return Some(at + literal.len());
        }
    }
    let skip_one_of = |at, set: &[u8]| {
        let is_in_set = bytes.get(at).is_some_and(|byte| set.contains(byte));
        at + usize::from(is_in_set)
    };
    let after_minus = skip_one_of(at, b"-");
    let after_zero = skip_one_of(after_minus, b"0");
    let mut at = if after_zero > after_minus { after_zero } else { skip_digits(bytes, after_minus)? };
    let after_point = skip_one_of(at, b".");
    if after_point > at {
        at = skip_digits(bytes, after_point)?;
    }
    let after_exponent = skip_one_of(at, b"eE");
    if after_exponent > at {
        at = skip_digits(bytes, skip_one_of(after_exponent, b"+-"))?;
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

    /// Asserts that serde_json judges a text in the same way.
    ///
    /// If the text is an object that a `Value` can hold, the fields are compared too.
    fn assert_agreement(text: &str) {
        let mut fields = Map::new();
        let is_object = parse_object(text, |key, value| {
            if let Ok(value) = serde_json::from_str(value) {
                fields.insert(key.to_owned(), value);
            }
        });
        let is_array = parse_array(text, |_| true);
        let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
        let begins_with = |byte| text.trim_ascii_start().starts_with(byte);
        assert_eq!(is_object.is_some(), is_json && begins_with('{'), "{text:?}");
        assert_eq!(is_array.is_some(), is_json && begins_with('['), "{text:?}");
        if let Ok(Value::Object(same)) = serde_json::from_str(text) {
            assert_eq!(fields, same, "{text:?}");
        }
    }

    #[test]
    fn portable_values_have_limited_levels_numbers_and_unicode() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let objects = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        for (value, expected) in [
            ("null", true),
            (r#"{"a":[1,-0,1.5e300,"茶\n","\ud83d\udd25"]}"#, true),
            ("1e999", false),
            (r#"{"a":[1e999]}"#, false),
            (r#""\ud800""#, false),
            (r#"{"\ud800":1}"#, false),
            (&nested(100), true),
            (&nested(101), false),
            (&objects(100), true),
            (&objects(101), false),
        ] {
            assert_eq!(is_portable(value), expected, "{value}");
        }
    }

    #[test]
    fn serde_json_agrees_on_valid_texts_and_their_mutations() {
        let valid = [
            r#"{"type":"candidateAdd","id":"A","candidate":{"candidate":"candidate:1 1 udp","sdpMLineIndex":0}}"#,
            r#" { "a" : [ 1 , -0.5e+10 , [ ] , { } , [[{"b":{}}]] ] , "c" : true , "d":false,"e" : null } "#,
            r#"[0,-1,10,1.0,1e1,1E-1,"",["\"\\\/\b\f\n\r\tA\ud800"],"狼煙",truefalse]"#,
            r#"{"\u0074ype":"offer","type":"a","type":"b","long string of plain characters":"\\\"","":0}"#,
        ];
        let bytes = b"\"\\{}[]:,0123456789+-.eEabftnu\x00\x1f\x20\n\x7f";
        for valid in valid.map(str::as_bytes) {
            for at in 0..=valid.len() {
                let (before, after) = valid.split_at(at);
                let mut mutations =
                    vec![before.to_vec(), after.to_vec(), [before, &after[after.len().min(1)..]].concat()];
                for byte in bytes {
                    mutations.push([before, &[*byte], after].concat());
                    mutations.push([before, &[*byte], &after[after.len().min(1)..]].concat());
                }
                for text in mutations.iter().filter_map(|text| str::from_utf8(text).ok()) {
                    assert_agreement(text);
                }
            }
        }
    }

    #[test]
    fn deep_nesting_is_accepted() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let (open, close) = (open.repeat(20_000), close.repeat(20_000));
            assert_agreement(&format!("{open}0{close}"));
            assert_agreement(&format!("{open}0{}", &close[1..]));
            assert_agreement(&open);
        }
    }

    #[test]
    fn array_is_read_until_the_callback_returns_false() {
        let mut read = Vec::new();
        let mut first_two = |element| {
            read.push(element);
            read.len() < 2
        };
        assert_eq!(parse_array(r#"[{"a":1}, 2 ,"#, &mut first_two), Some(()));
        assert_eq!(read, [r#"{"a":1}"#, "2"]);
    }

    #[test]
    fn fields_are_removed_by_name() {
        for (text, rest) in [
            ("{}", Some("{}")),
            (r#"{"a":1}"#, Some("{}")),
            (r#" { "a" : [1,{"a":2}] , "b" : {"a":3} } "#, Some(r#"{"b" : {"a":3}}"#)),
            (r#"{"b":1,"a":2,"c":3,"a":4}"#, Some(r#"{"b":1,"c":3}"#)),
            (r#"{"\u0061":1,"\ud800":2,"aa":3,"":4}"#, Some(r#"{"\ud800":2,"aa":3,"":4}"#)),
            (r#"{"a":1"#, None),
            (r#"{"a":1}}"#, None),
            (r#"{"a":1,}"#, None),
            ("[]", None),
        ] {
            assert_eq!(remove_fields(text, "a").as_deref(), rest, "{text}");
        }
    }

    #[test]
    fn strings_are_unescaped() {
        assert_eq!(parse_string(r#""plain""#), Some("plain".into()));
        assert_eq!(parse_string(r#""\u0041\n\\""#), Some("A\n\\".into()));
        for text in ["1", "null", r#"[""]"#, r#"["\\"]"#, r#""\ud800""#] {
            assert_eq!(parse_string(text), None, "{text}");
        }
    }

    #[test]
    fn strings_are_written_as_by_serde_json() {
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
    fn special_byte_is_found_at_every_offset() {
        for special in ["\"", "\\", "\0", "\u{1f}"] {
            for at in 0..20 {
                for around in ["!", "~", "\u{7f}", "#", "[", "]", "é"] {
                    let before = around.repeat(at);
                    let text = format!("{before}{special}{}", around.repeat(20));
                    assert_eq!(count_plain(text.as_bytes()), before.len(), "{text:?}");
                }
            }
        }
    }
}
