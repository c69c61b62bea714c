//! Arbitrary queries: the parser must agree with a naive reader, and encoded values are decoded.

#![cfg_attr(not(test), no_main)]

use noroshi::http::query::{NotUtf8, Query};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

/// The whole input is a query. Its lines are also names and values, which are encoded.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let expected: Vec<Result<(String, String), NotUtf8>> = text
        .split('&')
        .filter(|field| !field.is_empty())
        .map(|field| {
            let equals = field.find('=').unwrap_or(field.len());
            let value = field.get(equals + 1..).unwrap_or_default();
            Ok((decode(&field[..equals]).ok_or(NotUtf8)?, decode(value).ok_or(NotUtf8)?))
        })
        .collect();
    let query = Query::new(text);
    assert_eq!(query.fields().collect::<Vec<_>>(), expected);
    for (name, value) in expected.iter().flatten() {
        assert!(query.values(name).any(|found| found.as_ref() == Ok(value)), "{name:?} {value:?}");
    }
    for name in ["token", "next", "room", ""] {
        let good =
            expected.iter().flatten().filter(|(found, _)| found == name).map(|(_, value)| value.clone());
        let found = query.values(name).filter_map(Result::ok);
        assert_eq!(found.collect::<Vec<_>>(), good.collect::<Vec<_>>());
    }

    let fields: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let encoded: Vec<String> =
        fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    // U+FFFD stands for invalid bytes.
    let field = |name: &str, value: &str| {
        let is_replaced = [name, value].concat().contains(char::REPLACEMENT_CHARACTER);
        if is_replaced { Err(NotUtf8) } else { Ok((name.to_owned(), value.to_owned())) }
    };
    let fields: Vec<_> = fields.iter().map(|(name, value)| field(name, value)).collect();
    assert_eq!(Query::new(&encoded.join("&")).fields().collect::<Vec<_>>(), fields);
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match (bytes[at], digits) {
            (b'%', Some(digits)) => {
                decoded.push(u8::from_str_radix(digits, 16).unwrap());
                at += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                at += 1;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    let decoded = String::from_utf8(decoded).ok()?;
    // It stands for invalid bytes.
    (!decoded.contains(char::REPLACEMENT_CHARACTER)).then_some(decoded)
}

fn encode(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'a'..=b'z' => char::from(byte).to_string(),
        b' ' => "+".to_owned(),
        _ => format!("%{byte:02x}"),
    });
    each.collect()
}
