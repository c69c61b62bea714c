//! The scripts run the programs that cargo has built, in any target directory.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory with fake programs, removed when the value is dropped.
struct Fake(PathBuf);

impl Fake {
    fn program(&self, path: &str, script: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn scripts_use_the_target_directory_of_cargo() {
    let fake = Fake(std::env::temp_dir().join(format!("noroshi-scripts-{}", std::process::id())));
    fake.program("bin/cargo", "exit 0");
    fake.program("there/release/examples/load", "echo '  per second  12345'");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = format!("{}:{}", fake.0.join("bin").display(), std::env::var("PATH").unwrap());
    let mut script = Command::new("bash");
    script.arg(root.join("scripts/load.sh")).arg("1").env("PATH", path);
    let output = script.env("CARGO_TARGET_DIR", fake.0.join("there")).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(table.lines().filter(|line| line.contains("| 12345 |")).count(), 7, "{table}");
    // Built programs are run from that directory.
    for script in ["load.sh", "autobahn.sh"] {
        let text = std::fs::read_to_string(root.join("scripts").join(script)).unwrap();
        let elsewhere = text.replace("${CARGO_TARGET_DIR:-target}", "").replace("\"$target\"", "");
        let built = elsewhere.lines().filter(|line| !line.starts_with('#') && line.contains("target/"));
        assert_eq!(built.count(), 0, "{script}");
    }
}
