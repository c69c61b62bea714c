//! Flags from the environment: what containers and units say in variables.

use std::ffi::{OsStr, OsString};

/// Flags that may be said more than once. Their variables are lists.
const LISTS: [&str; 4] = ["listen", "allow-origin", "trust-proxy", "ice-server"];
/// Flags without a value, and those that have one or not. Their variables may also say yes or no.
const SWITCHES: [&str; 3] = ["no-page", "ayame", "matchbox"];
/// All others.
const VALUES: [&str; 13] = [
    "client-ip-header",
    "max-connections",
    "max-connections-per-ip",
    "max-memory",
    "max-mesh-peers",
    "max-message",
    "max-rate",
    "ping-interval",
    "turn-secret-file",
    "token-secret-file",
    "drain",
    "metrics",
    "log",
];

/// The flags that variables say (`NOROSHI_MAX_RATE` for `--max-rate`, and `PORT`), but for those that the command line
/// says too.
///
/// # Errors
/// One line that names the variable.
pub(super) fn flags(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    args: &[OsString],
) -> Result<Vec<OsString>, String> {
    let mut flags = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str() else { continue };
        let flag = match name.strip_prefix("NOROSHI_") {
            Some(rest) => rest.to_ascii_lowercase().replace('_', "-"),
            None if name == "PORT" => "port".to_owned(),
            None => continue,
        };
        if is_said(&flag, args) {
            continue;
        }
        let with = |value: &OsStr| {
            let mut flag = OsString::from(format!("--{flag}="));
            flag.push(value);
            flag
        };
        let text = value.to_str();
        let is =
            |words: &[&str]| text.is_some_and(|text| words.contains(&text.to_ascii_lowercase().as_str()));
        if LISTS.contains(&&*flag) {
            let each = text.ok_or_else(|| format!("{name}: not UTF-8"))?.split([',', ' ']);
            flags.extend(each.filter(|value| !value.is_empty()).map(|value| with(value.as_ref())));
        } else if VALUES.contains(&&*flag) || name == "PORT" {
            flags.push(with(&value));
        } else if !SWITCHES.contains(&&*flag) {
            return Err(format!("{name}: there is no such flag"));
        } else if is(&["1", "yes", "true", "on"]) {
            flags.push(format!("--{flag}").into());
        } else if !is(&["", "0", "no", "false", "off"]) {
            flags.push(with(&value));
        }
    }
    Ok(flags)
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
        let mut known = [&super::LISTS[..], &super::SWITCHES, &super::VALUES].concat();
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
    fn what_is_wrong_is_named() {
        for (variables, error) in [
            ("NOROSHI_MAXRATE=7", "NOROSHI_MAXRATE: there is no such flag"),
            ("NOROSHI_PORT=7", "NOROSHI_PORT: there is no such flag"),
            ("NOROSHI_NO_PAGE=maybe", "unexpected argument for option '--no-page': \"maybe\""),
            ("NOROSHI_MAX_RATE=x", "--max-rate x: not a whole number from 0 to 1000000"),
            ("PORT=x", "PORT x: not a whole number from 1 to 65535"),
        ] {
            assert_eq!(parse(variables, "").unwrap_err(), error);
        }
    }
}
