//! Flags from the environment: what containers and units say in variables.

use std::ffi::{OsStr, OsString};

/// Flags that may be said more than once. Their variables are lists.
const LISTS: [&str; 5] = ["listen", "allow-origin", "trust-proxy", "ice-server", "metrics-host"];
/// Flags without a value, and those that have one or not. Their variables may also say yes or no.
const SWITCHES: [&str; 3] = ["no-page", "ayame", "matchbox"];
/// Flags whose values are names of files, of any bytes.
const FILES: [&str; 2] = ["turn-secret-file", "token-secret-file"];
/// All others.
const VALUES: [&str; 11] = [
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

/// Returns the flags that variables set (`NOROSHI_MAX_RATE` for `--max-rate`, and `PORT`), except those that the command
/// line has too.
///
/// An empty variable is not set: that is what `${X:-}` of docker compose gives. Variables that an orchestrator sets for
/// a service of our name are ignored, see [`is_of_a_service`].
///
/// # Errors
/// One line that names the variable.
pub(super) fn flags(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    args: &[OsString],
) -> Result<Vec<OsString>, String> {
    let mut flags = Vec::new();
    for (name, value) in variables {
        let Some(suffix) = flag_name(&name) else { continue };
        if value.is_empty() || is_of_a_service(&suffix, &value) {
            continue;
        }
        let name = name.to_string_lossy();
        let flag =
            if name == "PORT" { "port".to_owned() } else { suffix.to_ascii_lowercase().replace('_', "-") };
        if is_said(&flag, args) {
            continue;
        }
        let with = |value: &OsStr| {
            let mut flag = OsString::from(format!("--{flag}="));
            flag.push(value);
            flag
        };
        let text = || value.to_str().ok_or_else(|| format!("{name}: expected UTF-8, got {value:?}"));
        if LISTS.contains(&&*flag) {
            let elements = text()?.split([',', ' ']).filter(|element| !element.is_empty());
            flags.extend(elements.map(|element| with(element.as_ref())));
        } else if FILES.contains(&&*flag) {
            flags.push(with(&value));
        } else if VALUES.contains(&&*flag) || name == "PORT" {
            flags.push(with(text()?.as_ref()));
        } else if SWITCHES.contains(&&*flag) {
            match &*text()?.to_ascii_lowercase() {
                "1" | "yes" | "true" | "on" => flags.push(format!("--{flag}").into()),
                "0" | "no" | "false" | "off" => {}
                _ if flag == "no-page" => return Err(format!("{name}: expected yes or no, got {value:?}")),
                _ => flags.push(with(&value)),
            }
        } else {
            return Err(format!(
                "{name:?}: expected the name of a flag after NOROSHI_, as in NOROSHI_MAX_RATE"
            ));
        }
    }
    Ok(flags)
}

/// Returns what follows `NOROSHI_` in the name of a variable, or the name if it is `PORT`. `None`: the variable is not
/// ours.
fn flag_name(name: &OsStr) -> Option<String> {
    if name == "PORT" {
        return Some("PORT".to_owned());
    }
    // A name that is not UTF-8 behind the prefix becomes no flag's name, and the error shows it.
    let name = name.to_string_lossy();
    name.strip_prefix("NOROSHI_").map(str::to_owned)
}

/// Returns whether an orchestrator sets this variable for a service named `noroshi` or `noroshi-anything`.
///
/// Kubernetes (service links, which are on by default) and Docker (`--link`) tell each container where other services
/// are. For a service `noroshi-web` they set `NOROSHI_WEB_SERVICE_HOST`, `NOROSHI_WEB_SERVICE_PORT`,
/// `NOROSHI_WEB_SERVICE_PORT_HTTP`, `NOROSHI_WEB_PORT=tcp://10.0.0.1:8080` and `NOROSHI_WEB_PORT_8080_TCP` with `_ADDR`,
/// `_PORT` and `_PROTO` behind it. `suffix` is the name without `NOROSHI_`.
fn is_of_a_service(suffix: &str, value: &OsStr) -> bool {
    // Whether a name ends in these words, alone or after others.
    let ends_in = |name: &str, words: &str| {
        name.strip_suffix(words).is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    let is_service_port = || {
        let mut places = suffix.match_indices("SERVICE_PORT");
        places.any(|(at, words)| {
            ends_in(&suffix[..at + words.len()], words)
                && matches!(suffix.as_bytes().get(at + words.len()), None | Some(b'_'))
        })
    };
    let is_port_of_a_transport = || {
        let words: Vec<&str> = suffix.split('_').collect();
        words.windows(3).any(|words| {
            let is_number = !words[1].is_empty() && words[1].bytes().all(|byte| byte.is_ascii_digit());
            words[0] == "PORT" && is_number && matches!(words[2], "TCP" | "UDP" | "SCTP")
        })
    };
    let is_address = || ends_in(suffix, "PORT") && value.to_string_lossy().contains("://");
    ends_in(suffix, "SERVICE_HOST") || is_service_port() || is_port_of_a_transport() || is_address()
}

/// Whether the command line says a flag.
fn is_said(flag: &str, args: &[OsString]) -> bool {
    args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
        let is_short = flag == "listen" && arg.starts_with("-l");
        is_short || arg.strip_prefix("--").is_some_and(|arg| arg.split('=').next() == Some(flag))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Command, Config, Listen};

    fn parse(variables: &str, args: &str) -> Result<Config, String> {
        let variables = variables.split(';').filter_map(|variable| variable.split_once('='));
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        match Config::parse_with(variables, args.split_whitespace().map(Into::into)) {
            Ok(Command::Run(config)) => Ok(config),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn every_flag_of_the_help_has_a_variable() {
        let help = Config::help();
        let flags = help
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("-l, ").or(Some(line.trim_start())));
        let flags = flags.filter_map(|line| line.strip_prefix("--")?.split([' ', '=', '[']).next());
        let mut flags: Vec<&str> = flags.collect();
        let mut known = [&super::LISTS[..], &super::SWITCHES, &super::FILES, &super::VALUES].concat();
        flags.sort();
        known.sort();
        assert_eq!(flags, known);
    }

    #[test]
    fn variables_say_what_flags_say_and_flags_win() {
        let config = parse("NOROSHI_MAX_RATE=7;NOROSHI_MAX_MESSAGE=1M;HOME=/;NOROSHI_DRAIN=5", "").unwrap();
        assert_eq!((config.rate_max, config.message_bytes_max), (7, 1 << 20));
        assert_eq!(parse("NOROSHI_MAX_RATE=7", "--max-rate 8").unwrap().rate_max, 8);
        let listen = "NOROSHI_LISTEN=127.0.0.1:1, [::1]:2 127.0.0.1:3";
        assert_eq!(parse(listen, "").unwrap().listen.len(), 3);
        for args in ["-l 127.0.0.1:9", "-l127.0.0.1:9", "--listen=127.0.0.1:9"] {
            let listen = parse(listen, args).unwrap().listen;
            assert_eq!(listen, [Listen::Tcp("127.0.0.1:9".parse().unwrap())], "{args}");
        }
        for (value, page, ayame) in [
            ("1", false, Some("/signaling")),
            ("off", true, None),
            ("", true, None),
            ("TRUE", false, Some("/signaling")),
        ] {
            let config = parse(&format!("NOROSHI_NO_PAGE={value};NOROSHI_AYAME={value}"), "").unwrap();
            assert_eq!((config.page, config.ayame.as_deref()), (page, ayame), "{value}");
        }
        assert_eq!(parse("NOROSHI_MATCHBOX=/games", "").unwrap().matchbox.as_deref(), Some("/games"));
        let config = parse("PORT=9000", "").unwrap();
        assert_eq!((config.port, config.listen.len()), (9000, 0));
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let names = [&super::LISTS[..], &super::SWITCHES, &super::FILES, &super::VALUES].concat();
        let variables =
            names.iter().map(|flag| format!("NOROSHI_{}=", flag.to_uppercase().replace('-', "_")));
        let variables = variables.chain(["PORT=".to_owned()]).collect::<Vec<_>>().join(";");
        assert_eq!(format!("{:?}", parse(&variables, "")), format!("{:?}", parse("", "")));
    }

    #[test]
    fn what_an_orchestrator_sets_for_a_service_of_our_name_is_ignored() {
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
    fn a_variable_that_is_not_utf8_is_named() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let parse = |name: &[u8], value: &[u8]| {
            let variable = (OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()));
            Config::parse_with([variable], [])
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
        let odd = parse(b"NOROSHI_\xff\n", b"1").unwrap_err();
        assert_eq!(
            odd,
            "\"NOROSHI_\u{fffd}\\n\": expected the name of a flag after NOROSHI_, as in NOROSHI_MAX_RATE"
        );
        assert!(parse(b"NOROSHI_TOKEN_SECRET_FILE", b"/\xff").is_ok(), "a file may have any name");
        assert!(parse(b"OTHER_\xff", b"\xff").is_ok());
    }

    #[test]
    fn health_is_asked_where_the_environment_has_the_server_listen() {
        let health = |variables: &str| {
            let variables = variables.split(';').filter_map(|variable| variable.split_once('='));
            let variables = variables.map(|(name, value)| (name.into(), value.into()));
            match Config::parse_with(variables, ["health".into()]) {
                Ok(Command::Health(probe)) => Ok(probe.to_string()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error),
            }
        };
        for (variables, probe) in [
            ("", "http://127.0.0.1:8080/healthz"),
            ("PORT=9000", "http://127.0.0.1:9000/healthz"),
            ("PORT=;NOROSHI_LISTEN=", "http://127.0.0.1:8080/healthz"),
            ("PORT=9000;NOROSHI_LISTEN=10.0.0.1:80", "http://10.0.0.1:80/healthz"),
            ("NOROSHI_LISTEN=0.0.0.0:81", "http://127.0.0.1:81/healthz"),
            ("NOROSHI_LISTEN=[::]:82", "http://127.0.0.1:82/healthz"),
            ("NOROSHI_LISTEN=[::1]:83", "http://[::1]:83/healthz"),
            ("NOROSHI_LISTEN=unix:/run/it,127.0.0.1:84", "unix:/run/it"),
            ("NOROSHI_LISTEN=127.0.0.1:85 unix:/run/it", "http://127.0.0.1:85/healthz"),
            // The server would not start, but its health is another question.
            ("NOROSHI_MAX_RATE=x;NOROSHI_ICE_SERVER=turn:a.example", "http://127.0.0.1:8080/healthz"),
        ] {
            assert_eq!(health(variables).as_deref(), Ok(probe), "{variables}");
        }
        for (variables, error) in [
            ("PORT=x", "PORT: expected a whole number from 1 to 65535, got \"x\""),
            (
                "NOROSHI_LISTEN=127.0.0.1:0",
                "health: expected a URL, because the port 0 of NOROSHI_LISTEN stands for any",
            ),
            (
                "NOROSHI_LISTEN=x",
                "--listen: expected an address and port, such as 127.0.0.1:8080 or [::]:8080, got \"x\"",
            ),
        ] {
            assert_eq!(health(variables), Err(error.to_owned()), "{variables}");
        }
        let url = ["health".into(), "http://a.example:1".into()];
        assert!(Config::parse_with([("PORT".into(), "x".into())], url).is_ok(), "a URL needs no environment");
    }

    #[test]
    fn what_is_wrong_is_named() {
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
