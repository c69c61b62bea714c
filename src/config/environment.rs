//! Reads flags from environment variables, for containers and systemd units.

use std::ffi::{OsStr, OsString};

use super::Endpoint;

/// Flags that may be repeated. Their variables hold lists.
const LIST_FLAGS: [&str; 5] = ["listen", "allow-origin", "trust-proxy", "ice-server", "metrics-host"];
/// Flags without a value. Their variables are yes or no.
const SWITCH_FLAGS: [&str; 1] = ["no-page"];
/// Flags whose values are paths of files, of any bytes.
const FILE_FLAGS: [&str; 2] = ["turn-secret-file", "token-secret-file"];
/// All other flags but those of protocols. They have one value.
const VALUE_FLAGS: [&str; 11] = [
    "client-ip-header",
    "max-connections",
    "max-connections-per-ip",
    "max-memory",
    "max-mesh-peers",
    "max-message",
    "max-rate",
    "ping-interval",
    "drain",
    "metrics",
    "log",
];

/// Returns the flags that environment variables set.
///
/// `NOROSHI_MAX_RATE` sets `--max-rate`, and `PORT` sets the port of the default address. A flag in `args`, the command
/// line, takes precedence over its variable. An empty variable is not set, because `${X:-}` of Docker Compose yields one.
/// Variables that an orchestrator sets are ignored, see [`is_service_link`].
///
/// # Errors
/// One line that names the variable.
pub(super) fn flags(
    endpoints: &[&Endpoint],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    args: &[OsString],
) -> Result<Vec<OsString>, String> {
    let mut flags = Vec::new();
    for (name, value) in variables {
        let Some(suffix) = variable_suffix(&name) else { continue };
        if value.is_empty() || is_service_link(&suffix, &value) {
            continue;
        }
        let name = name.to_string_lossy();
        let is_port = name == "PORT";
        let flag = if is_port { "port".to_owned() } else { flag_name(&suffix) };
        if is_in_args(&flag, args) {
            continue;
        }
        let text = || value.to_str().ok_or_else(|| format!("{name}: expected UTF-8, got {value:?}"));
        if LIST_FLAGS.contains(&flag.as_str()) {
            let elements = text()?.split([',', ' ']).filter(|element| !element.is_empty());
            flags.extend(elements.map(|element| flag_with_value(&flag, element.as_ref())));
        } else if FILE_FLAGS.contains(&flag.as_str()) {
            flags.push(flag_with_value(&flag, &value));
        } else if VALUE_FLAGS.contains(&flag.as_str()) || is_port {
            flags.push(flag_with_value(&flag, text()?.as_ref()));
        } else if SWITCH_FLAGS.contains(&flag.as_str()) {
            match parse_switch(text()?) {
                Some(true) => flags.push(format!("--{flag}").into()),
                Some(false) => {}
                None => return Err(format!("{name}: expected yes or no, got {value:?}")),
            }
        } else if endpoints.iter().any(|endpoint| endpoint.name == flag && !endpoint.is_always_on) {
            // Yes or no, or a path.
            match parse_switch(text()?) {
                Some(true) => flags.push(format!("--{flag}").into()),
                Some(false) => {}
                None => flags.push(flag_with_value(&flag, &value)),
            }
        } else {
            return Err(format!(
                "{name:?}: expected the name of a flag after NOROSHI_, as in NOROSHI_MAX_RATE"
            ));
        }
    }
    Ok(flags)
}

fn parse_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Some(true),
        "0" | "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// Returns the part of a variable's name behind `NOROSHI_`, or `PORT`.
///
/// `None`: the variable is for another program.
fn variable_suffix(name: &OsStr) -> Option<String> {
    if name == "PORT" {
        return Some("PORT".to_owned());
    }
    // If the rest of the name is not UTF-8, it matches no flag, and the error shows it.
    let name = name.to_string_lossy();
    name.strip_prefix("NOROSHI_").map(str::to_owned)
}

/// Converts `MAX_RATE` to `max-rate`.
fn flag_name(suffix: &str) -> String {
    suffix.to_ascii_lowercase().replace('_', "-")
}

fn flag_with_value(flag: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{flag}="));
    argument.push(value);
    argument
}

/// Returns whether an orchestrator sets this variable for a service `noroshi` or `noroshi-…`.
///
/// Kubernetes (service links, which are on by default) and Docker (`--link`) tell each container where other services
/// are. For a service `noroshi-web` they set `NOROSHI_WEB_SERVICE_HOST`, `NOROSHI_WEB_SERVICE_PORT`,
/// `NOROSHI_WEB_SERVICE_PORT_HTTP`, `NOROSHI_WEB_PORT=tcp://10.0.0.1:8080` and `NOROSHI_WEB_PORT_8080_TCP` with `_ADDR`,
/// `_PORT` and `_PROTO` behind it. `suffix` is the name without `NOROSHI_`.
fn is_service_link(suffix: &str, value: &OsStr) -> bool {
    ends_in_words(suffix, "SERVICE_HOST")
        || has_service_port(suffix)
        || has_transport_port(suffix)
        || (ends_in_words(suffix, "PORT") && value.to_string_lossy().contains("://"))
}

/// Returns whether a name ends in these words, alone or after other words.
fn ends_in_words(name: &str, words: &str) -> bool {
    name.strip_suffix(words).is_some_and(|before| before.is_empty() || before.ends_with('_'))
}

/// Returns whether a name has the words `SERVICE_PORT`, as `WEB_SERVICE_PORT_HTTP` has.
fn has_service_port(suffix: &str) -> bool {
    suffix.match_indices("SERVICE_PORT").any(|(start, words)| {
        let end = start + words.len();
        let has_word_boundary = matches!(suffix.as_bytes().get(end), None | Some(b'_'));
        has_word_boundary && ends_in_words(&suffix[..end], words)
    })
}

/// Returns whether a name has the words `PORT`, a number and a transport, as `PORT_8080_TCP_ADDR` has.
fn has_transport_port(suffix: &str) -> bool {
    let words: Vec<&str> = suffix.split('_').collect();
    words.windows(3).any(|words| {
        let number = words[1];
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        words[0] == "PORT" && is_number && matches!(words[2], "TCP" | "UDP" | "SCTP")
    })
}

/// Returns whether the command line has a flag.
fn is_in_args(flag: &str, args: &[OsString]) -> bool {
    args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
        let is_short = flag == "listen" && arg.starts_with("-l");
        let is_long = arg.strip_prefix("--").is_some_and(|arg| arg.split('=').next() == Some(flag));
        is_short || is_long
    })
}

#[cfg(test)]
mod tests {
    use super::super::endpoint::examples::{AYAME, ENDPOINTS};
    use super::super::{Command, Config, ListenAddress};

    fn all_flags() -> Vec<&'static str> {
        let kinds = [&super::LIST_FLAGS[..], &super::SWITCH_FLAGS, &super::FILE_FLAGS, &super::VALUE_FLAGS];
        [kinds.concat(), vec!["ayame", "matchbox"]].concat()
    }

    /// Parses variables, separated by `;`, and a command line.
    fn parse(variables: &str, args: &str) -> Result<Config, String> {
        let variables = variables.split(';').filter_map(|variable| variable.split_once('='));
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        match Config::parse_with_environment(ENDPOINTS, variables, args.split_whitespace().map(Into::into)) {
            Ok(Command::Run(config)) => Ok(config),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn every_flag_of_the_help_has_a_variable() {
        let help = Config::help(ENDPOINTS);
        let mut flags = Vec::new();
        for line in help.lines() {
            let line = line.trim_start();
            let without_short = line.strip_prefix("-l, ").unwrap_or(line);
            if let Some(long) = without_short.strip_prefix("--") {
                flags.extend(long.split([' ', '=', '[']).next());
            }
        }
        let mut flags_with_variables = all_flags();
        flags.sort();
        flags_with_variables.sort();
        assert_eq!(flags, flags_with_variables);
    }

    #[test]
    fn flag_takes_precedence_over_its_variable() {
        let config = parse("NOROSHI_MAX_RATE=7;NOROSHI_MAX_MESSAGE=1M;HOME=/;NOROSHI_DRAIN=5", "").unwrap();
        assert_eq!((config.rate_max, config.message_bytes_max), (7, 1 << 20));
        assert_eq!(parse("NOROSHI_MAX_RATE=7", "--max-rate 8").unwrap().rate_max, 8);
        let listen = "NOROSHI_LISTEN=127.0.0.1:1, [::1]:2 127.0.0.1:3";
        assert_eq!(parse(listen, "").unwrap().listen.len(), 3);
        for args in ["-l 127.0.0.1:9", "-l127.0.0.1:9", "--listen=127.0.0.1:9"] {
            let listen = parse(listen, args).unwrap().listen;
            assert_eq!(listen, [ListenAddress::Tcp("127.0.0.1:9".parse().unwrap())], "{args}");
        }
        for (value, page, ayame) in [
            ("1", false, Some("/signaling")),
            ("off", true, None),
            ("", true, None),
            ("TRUE", false, Some("/signaling")),
        ] {
            let config = parse(&format!("NOROSHI_NO_PAGE={value};NOROSHI_AYAME={value}"), "").unwrap();
            assert_eq!((config.page, config.path_of(&AYAME)), (page, ayame), "{value}");
        }
        assert_eq!(parse("NOROSHI_AYAME=/games", "").unwrap().path_of(&AYAME), Some("/games"));
        let config = parse("PORT=9000", "").unwrap();
        assert_eq!((config.port, config.listen.len()), (9000, 0));
    }

    #[test]
    fn empty_variable_is_not_set() {
        let mut variables = vec!["PORT=".to_owned()];
        for flag in all_flags() {
            let suffix = flag.to_uppercase().replace('-', "_");
            variables.push(format!("NOROSHI_{suffix}="));
        }
        let config = parse(&variables.join(";"), "");
        assert_eq!(format!("{config:?}"), format!("{:?}", parse("", "")));
    }

    #[test]
    fn service_links_of_kubernetes_and_docker_are_ignored() {
        for variable in [
            "NOROSHI_SERVICE_HOST=10.0.0.1",
            "NOROSHI_SERVICE_PORT=8080",
            "NOROSHI_SERVICE_PORT_HTTP=8080",
            "NOROSHI_PORT=tcp://10.0.0.1:8080",
            "NOROSHI_PORT_8080_TCP=tcp://10.0.0.1:8080",
            "NOROSHI_PORT_8080_TCP_ADDR=10.0.0.1",
            "NOROSHI_PORT_8080_TCP_PORT=8080",
            "NOROSHI_PORT_8080_TCP_PROTO=tcp",
            "NOROSHI_PORT_3478_UDP_ADDR=10.0.0.1",
            "NOROSHI_WEB_2_SERVICE_HOST=10.0.0.1",
            "NOROSHI_WEB_2_SERVICE_PORT_METRICS=8081",
            "NOROSHI_WEB_2_PORT=udp://10.0.0.1:3478",
            "NOROSHI_WEB_2_PORT_8080_TCP_PROTO=tcp",
            "NOROSHI_MAX_RATE_SERVICE_HOST=10.0.0.1",
        ] {
            assert_eq!(format!("{:?}", parse(variable, "")), format!("{:?}", parse("", "")), "{variable}");
        }
        for variable in [
            "NOROSHI_PORT=8080",
            "NOROSHI_WEB_PORT=8080",
            "NOROSHI_SERVICEHOST=10.0.0.1",
            "NOROSHI_MYSERVICE_HOST=10.0.0.1",
            "NOROSHI_SERVICE_PORTS=1",
            "NOROSHI_SERVICE=1",
            "NOROSHI_PORT_X_TCP=1",
            "NOROSHI_PORT__TCP=1",
            "NOROSHI_PORT_8080_TLS=1",
            "NOROSHI_REPORT=tcp://10.0.0.1:8080",
            "NOROSHI_=1",
        ] {
            let error = parse(variable, "").unwrap_err();
            assert!(error.contains("expected the name of a flag"), "{variable}: {error}");
        }
    }

    #[test]
    fn error_names_variable_that_is_not_utf8() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let parse = |name: &[u8], value: &[u8]| {
            let variable = (OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()));
            Config::parse_with_environment(ENDPOINTS, [variable], [])
        };
        for (name, error) in [
            ("NOROSHI_MAX_RATE", r#"NOROSHI_MAX_RATE: expected UTF-8, got "\xFF""#),
            ("NOROSHI_LISTEN", r#"NOROSHI_LISTEN: expected UTF-8, got "\xFF""#),
            ("NOROSHI_NO_PAGE", r#"NOROSHI_NO_PAGE: expected UTF-8, got "\xFF""#),
            ("NOROSHI_AYAME", r#"NOROSHI_AYAME: expected UTF-8, got "\xFF""#),
            ("PORT", r#"PORT: expected UTF-8, got "\xFF""#),
        ] {
            assert_eq!(parse(name.as_bytes(), b"\xff").unwrap_err(), error);
        }
        let error = parse(b"NOROSHI_\xff\n", b"1").unwrap_err();
        assert_eq!(
            error,
            "\"NOROSHI_\u{fffd}\\n\": expected the name of a flag after NOROSHI_, as in NOROSHI_MAX_RATE"
        );
        assert!(parse(b"NOROSHI_TOKEN_SECRET_FILE", b"/\xff").is_ok(), "a file may have any name");
        assert!(parse(b"OTHER_\xff", b"\xff").is_ok());
    }

    #[test]
    fn health_check_follows_the_environment_of_the_server() {
        let health = |variables: &str| {
            let variables = variables.split(';').filter_map(|variable| variable.split_once('='));
            let variables = variables.map(|(name, value)| (name.into(), value.into()));
            match Config::parse_with_environment(ENDPOINTS, variables, ["health".into()]) {
                Ok(Command::Health(check)) => Ok(check.to_string()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error),
            }
        };
        for (variables, url) in [
            ("", "http://127.0.0.1:8080/healthz"),
            ("PORT=9000", "http://127.0.0.1:9000/healthz"),
            ("PORT=;NOROSHI_LISTEN=", "http://127.0.0.1:8080/healthz"),
            ("PORT=9000;NOROSHI_LISTEN=10.0.0.1:80", "http://10.0.0.1:80/healthz"),
            ("NOROSHI_LISTEN=0.0.0.0:81", "http://127.0.0.1:81/healthz"),
            ("NOROSHI_LISTEN=[::]:82", "http://127.0.0.1:82/healthz"),
            ("NOROSHI_LISTEN=[::1]:83", "http://[::1]:83/healthz"),
            ("NOROSHI_LISTEN=unix:/run/it,127.0.0.1:84", "unix:/run/it"),
            ("NOROSHI_LISTEN=127.0.0.1:85 unix:/run/it", "http://127.0.0.1:85/healthz"),
            // Variables that the health check does not need may be wrong.
            ("NOROSHI_MAX_RATE=x;NOROSHI_ICE_SERVER=turn:a.example", "http://127.0.0.1:8080/healthz"),
        ] {
            assert_eq!(health(variables).as_deref(), Ok(url), "{variables}");
        }
        for (variables, error) in [
            ("PORT=x", "PORT: expected a whole number from 1 to 65535, got \"x\""),
            (
                "NOROSHI_LISTEN=127.0.0.1:0",
                "health: expected a URL, because port 0 in NOROSHI_LISTEN means any free port",
            ),
            (
                "NOROSHI_LISTEN=x",
                "--listen: expected an address and port, such as 127.0.0.1:8080 or [::]:8080, got \"x\"",
            ),
        ] {
            assert_eq!(health(variables), Err(error.to_owned()), "{variables}");
        }
        let url = ["health".into(), "http://a.example:1".into()];
        assert!(
            Config::parse_with_environment(ENDPOINTS, [("PORT".into(), "x".into())], url).is_ok(),
            "a URL needs no environment"
        );
    }

    #[test]
    fn error_names_the_variable_or_flag() {
        for (variables, error) in [
            (
                "NOROSHI_MAXRATE=7",
                "\"NOROSHI_MAXRATE\": expected the name of a flag after NOROSHI_, as in NOROSHI_MAX_RATE",
            ),
            ("NOROSHI_NO_PAGE=maybe", "NOROSHI_NO_PAGE: expected yes or no, got \"maybe\""),
            ("NOROSHI_MAX_RATE=x", "--max-rate: expected a whole number from 0 to 1000000, got \"x\""),
            ("PORT=x", "PORT: expected a whole number from 1 to 65535, got \"x\""),
        ] {
            assert_eq!(parse(variables, "").unwrap_err(), error);
        }
    }
}
