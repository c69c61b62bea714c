//! Runs the README's examples that create tokens, and verifies the tokens.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::files::Folder;
use crate::common::program::find;
use noroshi::http::token::Secrets;

const README: &str = include_str!("../../README.md");
const SECRET: &str = "nobody shall guess this one, long as it is";

/// Returns the README's example in this language.
fn example(language: &str) -> &'static str {
    let mut blocks = README.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let (_, example) = blocks.find(|(info, code)| *info == language && code.contains("alice")).unwrap();
    example
}

#[track_caller]
fn output(command: &mut Command) -> String {
    // Debian's pip otherwise refuses to install packages, even into a separate directory.
    let output = command.env("SECRET", SECRET).env("PIP_BREAK_SYSTEM_PACKAGES", "1").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{stdout}\n{stderr}");
    stdout
}

/// Asserts that the token is for alice in one room, for an hour.
#[track_caller]
fn is_believed(token: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let claims = Secrets::parse(SECRET.as_bytes()).unwrap().verify(token.trim(), now).unwrap();
    assert_eq!((claims.room.as_deref(), claims.id.as_deref()), (Some("tea"), Some("alice")));
    let left = claims.expires_at.saturating_sub(now);
    assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
}

#[test]
fn node_example_creates_a_valid_token() {
    let Some((node, npm)) = find("node").zip(find("npm")) else { return };
    let home = Folder::new("node");
    let script = format!("{}\nconsole.log(token)", example("js"));
    output(
        Command::new(npm)
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", "jsonwebtoken"])
            .current_dir(&home.0),
    );
    is_believed(&output(Command::new(node).args(["-e", &script]).current_dir(&home.0)));
}

#[test]
fn python_example_creates_a_valid_token() {
    let Some(python) = find("python3") else { return };
    let home = Folder::new("python");
    let script = format!("{}\nprint(token)", example("python"));
    let pip =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", "packages", "PyJWT"];
    output(Command::new(&python).args(pip).current_dir(&home.0));
    is_believed(&output(
        Command::new(&python).args(["-c", &script]).env("PYTHONPATH", home.0.join("packages")),
    ));
}

#[test]
fn php_example_creates_a_valid_token() {
    let Some(php) = find("php") else { return };
    let script = format!("{}\necho $token;", example("php"));
    is_believed(&output(Command::new(php).args(["-r", &script])));
}
