//! Tests that need a process of their own, because they observe or change something that all tests of a program share:
//! the number of allocations, or the network namespace.

use std::process::Command;

/// Environment variable that has the name of the only test in this process.
const ONLY_TEST: &str = "TEST_IN_OWN_PROCESS";

/// Returns whether the calling test is alone in this process. If it is not, runs it in a new process and waits for it.
/// `test` is its name with its module. `launcher` is a command that starts the process, and may be empty.
pub fn is_alone(test: &str, launcher: &[&str]) -> bool {
    if std::env::var_os(ONLY_TEST).is_some_and(|only| only == test) {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let mut words = launcher.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", test, "--nocapture"]).env(ONLY_TEST, test);
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    println!("{stdout}");
    // A wrong name would match no test, which is a success.
    let has_passed = output.status.success() && stdout.contains("test result: ok. 1 passed;");
    assert!(has_passed, "{test}: {}", String::from_utf8_lossy(&output.stderr));
    false
}
