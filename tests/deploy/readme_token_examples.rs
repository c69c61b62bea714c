//! Runs the programs of `scripts/deploy` that create tokens, and verifies the tokens.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::files::Folder;
use crate::common::program::find;
use crate::common::readme::deploy_file;
use noroshi::http::token::Secrets;

const SECRET: &str = "nobody shall guess this one, long as it is";

/// Copies a program into a directory with its packages. Returns the path of the copy.
fn copy(name: &str, home: &Folder) -> PathBuf {
    let path = home.0.join(name);
    std::fs::write(&path, deploy_file(name)).unwrap();
    path
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
fn node_program_creates_a_valid_token() {
    let Some((node, npm)) = find("node").zip(find("npm")) else { return };
    let home = Folder::new("node");
    output(
        Command::new(npm)
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", "jsonwebtoken"])
            .current_dir(&home.0),
    );
    is_believed(&output(Command::new(node).arg(copy("create_token.mjs", &home))));
}

#[test]
fn python_program_creates_a_valid_token() {
    let Some(python) = find("python3") else { return };
    let home = Folder::new("python");
    let pip =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", "packages", "PyJWT"];
    output(Command::new(&python).args(pip).current_dir(&home.0));
    is_believed(&output(
        Command::new(&python).arg(copy("create_token.py", &home)).env("PYTHONPATH", home.0.join("packages")),
    ));
}

#[test]
fn php_program_creates_a_valid_token() {
    let Some(php) = find("php") else { return };
    let home = Folder::new("php");
    is_believed(&output(Command::new(php).arg(copy("create_token.php", &home))));
}
