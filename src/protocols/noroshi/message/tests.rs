//! Parsing of valid and invalid messages, and the JSON of the messages of the server.

use super::*;

fn parse_error(text: &str) -> (Code, Option<String>) {
    let (error, target) = parse(text).expect_err(text);
    (error.code, target.map(Cow::into_owned))
}

fn parse_offer(text: &str) -> String {
    match parse_signaling(text).expect(text).body {
        Body::Offer(sdp) => sdp.to_owned(),
        body => panic!("{text}: {body:?}"),
    }
}

fn parse_signaling(text: &str) -> Option<SignalingMessage<'_>> {
    match parse(text) {
        Ok(ClientMessage::Signaling(message)) => Some(message),
        _ => None,
    }
}

#[test]
fn text_that_is_not_a_json_object_is_rejected() {
    for text in
        ["", " ", "{", "}", "[]", "null", "1", "\"x\"", "{}{}", "{} x", "{\"a\":}", "{'a':1}", "\u{feff}{}"]
    {
        assert_eq!(parse_error(text).0, Code::BadJson, "{text:?}");
    }
    // RFC 8259 section 7 forbids raw control characters in strings.
    assert_eq!(parse_error("{\"type\":\"connect\",\"id\":\"a\nb\"}").0, Code::BadJson);
}

#[test]
fn fields_are_checked_in_order() {
    for (text, code) in [
        ("{}", Code::BadMessage),
        (r#"{"type":null}"#, Code::BadMessage),
        (r#"{"type":1}"#, Code::BadMessage),
        (r#"{"type":"\ud800"}"#, Code::BadMessage),
        (r#"{"type":"hello"}"#, Code::UnknownType),
        (r#"{"type":"Connect","id":"A"}"#, Code::UnknownType),
        (r#"{"type":"connect"}"#, Code::BadMessage),
        (r#"{"type":"connect","id":null}"#, Code::BadMessage),
        (r#"{"type":"connect","id":""}"#, Code::BadMessage),
        (r#"{"type":"connect","id":1}"#, Code::BadMessage),
        (r#"{"type":"connect","id":["A"]}"#, Code::BadMessage),
        (r#"{"type":"connect","id":"\ud800"}"#, Code::BadMessage),
        (r#"{"type":"answer","id":"A","target_id":1}"#, Code::BadMessage),
        (r#"{"type":"candidateAdd","id":"A","candidates":{}}"#, Code::BadMessage),
        (r#"{"type":"candidateAdd","id":"A","candidates":[]}"#, Code::BadMessage),
        (r#"{"type":"ping","iceServers":"true"}"#, Code::BadMessage),
        (r#"{"type":"ping","id":"A","iceServers":[]}"#, Code::BadMessage),
    ] {
        assert_eq!(parse_error(text), (code, None), "{text}");
    }
}

#[test]
fn error_includes_a_valid_target_id() {
    assert_eq!(parse_error(r#"{"type":"answer","target_id":"Z"}"#), (Code::BadMessage, Some("Z".into())));
    assert_eq!(parse_error(r#"{"type":"hello","target_id":"Z"}"#), (Code::UnknownType, Some("Z".into())));
}

#[test]
fn id_length_is_limited_in_bytes_after_unescaping() {
    let id = |id: &str| parse_signaling(&format!(r#"{{"type":"join","id":"{id}"}}"#)).map(|r| r.id.len());
    assert_eq!(id(&"x".repeat(128)), Some(128));
    assert_eq!(id(&"x".repeat(129)), None);
    assert_eq!(id(&"\\u0041".repeat(128)), Some(128));
    assert_eq!(id(&"狼".repeat(42)), Some(126));
    assert_eq!(id(&"狼".repeat(43)), None);
    for control in ["\\u0000", "\\n", "\\u001f", "\\u007f", "a\\u0000", "\u{7f}"] {
        assert_eq!(id(control), None, "{control:?}");
    }
    assert_eq!(id("\\u0080"), Some(2));
}

#[test]
fn keys_may_be_escaped_repeated_or_unknown() {
    assert_eq!(parse_offer(r#"{"\u0074ype":"offer","id":"A","sdp":1}"#), "1");
    assert_eq!(parse_offer(r#"{"type":"hello","type":"offer","id":1,"id":"A","sdp":1,"sdp":2}"#), "2");
    assert_eq!(parse_offer(r#"{"type":"offer","id":"A","sdp":1,"sdp":null}"#), "null");
    assert_eq!(parse_offer(r#"{"type":"offer","id":"A","\ud800":"\udfff","x":1e999,"sdp":0}"#), "0");
    assert_eq!(parse_offer(r#"{"type":"offer","id":"A","target_id":null}"#), "null");
}

#[test]
fn sdp_is_kept_as_written_by_the_sender() {
    for sdp in [
        r#"{"b":1,"a":2,"b":3}"#,
        r#"[ 1.0 , 1e400, -0 ,"\ud800\u0041/\/" ]"#,
        r#""v=0\r\n <&> 日本 \u2028""#,
        "{\n\t\"type\" : \"offer\" }",
    ] {
        let text = format!(r#"{{"type":"offer","id":"A","sdp": {sdp} }}"#);
        assert_eq!(parse_offer(&text), sdp);
        let sent = ServerMessage::Answer { sdp, id: "A" }.to_json();
        let received: serde_json::Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(received["sdp"], sdp);
    }
}

#[test]
fn nesting_depth_is_unlimited() {
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    assert_eq!(parse_offer(&format!(r#"{{"type":"offer","id":"A","x":{deep},"sdp":{deep}}}"#)), deep);
    assert_eq!(parse_error(&"[".repeat(60_000)).0, Code::BadJson);
    assert_eq!(parse_error(&"{\"a\":".repeat(12_000)).0, Code::BadJson);
}

#[test]
fn candidates_has_precedence_over_candidate() {
    let parse_candidates = |text: &str| match parse_signaling(text).unwrap().body {
        Body::Candidates(candidates) => {
            assert_eq!(candidates.iter().count(), candidates.len());
            candidates.iter().map(str::to_owned).collect::<Vec<_>>()
        }
        body => panic!("{body:?}"),
    };
    assert_eq!(parse_candidates(r#"{"type":"candidateAdd","id":"A"}"#), ["null"]);
    assert_eq!(parse_candidates(r#"{"type":"candidateAdd","id":"A","candidate":{"a": 1}}"#), [r#"{"a": 1}"#]);
    assert_eq!(
        parse_candidates(r#"{"type":"candidateAdd","id":"A","candidates":[null, 1,"x"],"candidate":2}"#),
        ["null", "1", "\"x\""]
    );
    let with_candidates = |count: usize| {
        let more = ",0".repeat(count - 1);
        format!(r#"{{"type":"candidateAdd","id":"A","candidates":[0{more}]}}"#)
    };
    assert_eq!(parse_candidates(&with_candidates(64)).len(), 64);
    assert_eq!(parse_error(&with_candidates(65)).0, Code::BadMessage);
}

#[test]
fn ping_needs_no_other_field() {
    for (text, expected) in [
        (r#"{"type":"ping"}"#, false),
        (r#"{"type":"ping","id":"A"}"#, false),
        (r#"{"type":"ping","id":1,"target_id":1,"candidates":1}"#, false),
        (r#"{"type":"ping","iceServers":null}"#, false),
        (r#"{"type":"ping","iceServers":false}"#, false),
        (r#"{"type":"ping","iceServers":true}"#, true),
        (r#"{"iceServers": true ,"id":"A","type":"ping"}"#, true),
    ] {
        match parse(text) {
            Ok(ClientMessage::Ping { wants_ice_servers }) => {
                assert_eq!(wants_ice_servers, expected, "{text}")
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn replies_have_the_specified_json() {
    let error = ErrorReply { code: Code::UnknownPeer, message: "nobody" };
    for (reply, text) in [
        (ServerMessage::RequestOffer, r#"{"type":"offer"}"#),
        (
            ServerMessage::Offer { sdp: "\"o\"", target: "A", id: None },
            r#"{"type":"offer","sdp":"\"o\"","target_id":"A"}"#,
        ),
        (
            ServerMessage::Offer { sdp: "1", target: "A", id: Some("A") },
            r#"{"type":"offer","sdp":"1","target_id":"A","id":"A"}"#,
        ),
        (ServerMessage::Answer { sdp: "null", id: "\n" }, r#"{"type":"answer","sdp":"null","id":"\n"}"#),
        (
            ServerMessage::Candidate { candidate: "1|2", id: "A" },
            r#"{"type":"candidate","candidate":"1|2","id":"A"}"#,
        ),
        (
            ServerMessage::Joined { id: "A", peers: vec!["B", "\""] },
            r#"{"type":"joined","id":"A","peers":["B","\""]}"#,
        ),
        (ServerMessage::PeerJoined { id: "A" }, r#"{"type":"peerJoined","id":"A"}"#),
        (ServerMessage::Pong, r#"{"type":"pong"}"#),
        (ServerMessage::PeerLeft { id: "A" }, r#"{"type":"peerLeft","id":"A"}"#),
        (
            ServerMessage::Error { error, target: Some("Z") },
            r#"{"type":"error","code":"unknown_peer","message":"nobody","target_id":"Z"}"#,
        ),
        (
            ServerMessage::Error { error, target: None },
            r#"{"type":"error","code":"unknown_peer","message":"nobody"}"#,
        ),
    ] {
        assert_eq!(reply.to_json(), text);
    }
}
