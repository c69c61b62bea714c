//! Arbitrary text: our JSON parser must agree with serde_json.

#![cfg_attr(not(test), no_main)]

use noroshi::json;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let is_json = |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok();
    let begins_with = |byte| is_json(text) && text.trim_ascii_start().starts_with(byte);

    let mut fields = Map::new();
    let object = json::parse_object(text, |key, value| {
        check_value(value);
        if let Ok(value) = serde_json::from_str(value) {
            fields.insert(key.to_owned(), value);
        }
    });
    assert_eq!(object.is_some(), begins_with('{'));
    let mut elements = Vec::new();
    let array = json::parse_array(text, |element| {
        check_value(element);
        elements.extend(serde_json::from_str::<Value>(element));
        true
    });
    assert_eq!(array.is_some(), begins_with('['));
    // Valid JSON that a Value cannot hold: nested too deep, numbers too large, invalid Unicode.
    match serde_json::from_str(text) {
        Ok(Value::Object(same)) => assert_eq!(fields, same),
        Ok(Value::Array(same)) => assert_eq!(elements, same),
        Ok(Value::String(same)) if !text.starts_with(char::is_whitespace) => {
            assert_eq!(json::parse_string(text.trim_ascii_end()).as_deref(), Some(&*same));
        }
        _ => {}
    }

    let mut written = Vec::new();
    json::push_string(&mut written, text);
    let written = String::from_utf8(written).unwrap();
    assert_eq!(written, serde_json::to_string(text).unwrap());
    assert_eq!(json::parse_string(&written).as_deref(), Some(text));
}

/// Asserts that a returned value has no surrounding whitespace.
fn check_value(text: &str) {
    assert!(!text.is_empty() && text == text.trim_ascii());
}
