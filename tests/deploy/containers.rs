//! The files of `scripts/deploy` for containers and for Prometheus. Other tests run the files for proxies and systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::files::Folder;
use crate::common::process::run;
use crate::common::program::find;
use crate::common::readme::deploy_file;
use noroshi::config::{Command as Parsed, Config};
use noroshi::protocols;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy").join(name)
}

#[track_caller]
fn assert_success(command: &mut Command) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&text));
}

/// Runs a module of a Python package, which is installed into a temporary directory.
fn run_python_module(package: &str, module: &str, arguments: &[&str], file: &Path) {
    let Some(python) = find("python3") else { return };
    let home = Folder::new(module);
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
    // Debian's pip otherwise refuses to install packages, even into a separate directory.
    assert_success(
        Command::new(&python).args(pip).arg(&home.0).arg(package).env("PIP_BREAK_SYSTEM_PACKAGES", "1"),
    );
    let mut command = Command::new(python);
    command.args(["-m", module]).args(arguments).arg(file).current_dir(&home.0);
    assert_success(command.env("PYTHONPATH", &home.0));
}

#[test]
fn compose_file_matches_the_schema() {
    let arguments = ["--builtin-schema", "vendor.compose-spec"];
    run_python_module("check-jsonschema", "check_jsonschema", &arguments, &path("compose.yaml"));
}

#[test]
fn kubernetes_manifests_match_the_schema() {
    run_python_module("kubernetes-validate", "kubernetes_validate", &["--strict"], &path("kubernetes.yaml"));
}

/// Returns the variables that a container sets for noroshi, as `NAME: value` or as `name: NAME` and `value: …`.
fn variables(file: &str) -> Vec<(String, String)> {
    let text = deploy_file(file);
    let lines: Vec<&str> = text.lines().map(|line| line.trim().trim_start_matches("- ")).collect();
    let unquoted = |value: &str| value.trim().trim_matches('"').to_owned();
    let mut variables = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        // A variable that is commented out is an example, and must be valid too.
        let line = line.trim_start_matches('#');
        if let Some(name) = line.strip_prefix("name: NOROSHI_") {
            let value = lines[at + 1].strip_prefix("value: ").unwrap();
            variables.push((format!("NOROSHI_{name}"), unquoted(value)));
        } else if line.starts_with("NOROSHI_") {
            let (name, value) = line.split_once(": ").unwrap();
            variables.push((name.to_owned(), unquoted(value)));
        }
    }
    variables
}

#[test]
fn variables_of_containers_are_valid() {
    for file in ["compose.yaml", "kubernetes.yaml"] {
        let variables = variables(file);
        assert!(variables.len() > 4, "{variables:?}");
        let parsed = Config::parse_with_environment(
            &protocols::endpoints(protocols::ALL),
            variables.iter().map(|(name, value)| (name.into(), value.into())),
            [],
        );
        let Ok(Parsed::Run(config)) = parsed else { panic!("{file}: {parsed:?}") };
        assert!(config.memory_bytes_max.is_some() && !config.trusted_proxies.is_empty(), "{file}");
    }
}

#[test]
fn compose_file_mounts_the_secret_that_noroshi_reads() {
    let text = deploy_file("compose.yaml");
    // Docker Compose mounts a secret at /run/secrets/NAME.
    assert!(text.contains("NOROSHI_TURN_SECRET_FILE: /run/secrets/turn\n"));
    assert!(text.contains("secrets: [turn]\n") && text.contains("\nsecrets:\n  turn:\n"));
}

const PROMTOOL: &str = "promtool";

#[test]
fn alerts_pass_promtool() {
    let Some(promtool) = find(PROMTOOL) else { return };
    assert_success(Command::new(promtool).args(["check", "rules"]).arg(path("alerts.yaml")));
}

/// Series of a server with every problem, and of one without. The values are `first+increment x count`.
const BROKEN: [(&str, &str); 8] = [
    ("up", "0x60"),
    ("process_start_time_seconds", "0+60x60"),
    ("process_open_fds", "9500x60"),
    ("noroshi_connections_total", "0+60x60"),
    ("noroshi_refused_upgrades_total status 503", "0+60x60"),
    ("noroshi_refused_upgrades_total status 403", "0+120x60"),
    ("noroshi_handshakes_total outcome answered", "0+30x60"),
    ("noroshi_handshakes_total outcome unanswered", "0+30x60"),
];
const HEALTHY: [(&str, &str); 8] = [
    ("up", "1x60"),
    ("process_start_time_seconds", "1000x60"),
    ("process_open_fds", "500x60"),
    ("noroshi_connections_total", "0+60x60"),
    ("noroshi_refused_upgrades_total status 503", "0x60"),
    ("noroshi_refused_upgrades_total status 403", "0+2x60"),
    ("noroshi_handshakes_total outcome answered", "0+90x60"),
    ("noroshi_handshakes_total outcome unanswered", "0+10x60"),
];

/// Returns a test for promtool that expects these alerts after 50 minutes.
fn promtool_test(series: &[(&str, &str)], slow_iterations: u32, alerts: &[&str]) -> String {
    let mut text = "  - interval: 1m\n    input_series:\n".to_owned();
    let mut input = |series: &str, values: &str| {
        text += &format!("      - {{series: '{series}', values: '{values}'}}\n");
    };
    let labels = r#"job="noroshi",instance="a:8081""#;
    for (name, values) in series {
        match name.split(' ').collect::<Vec<_>>()[..] {
            [name, label, value] => input(&format!(r#"{name}{{{labels},{label}="{value}"}}"#), values),
            _ => input(&format!("{name}{{{labels}}}"), values),
        }
    }
    input(&format!("noroshi_loop_turn_seconds_count{{{labels}}}"), "0+100x60");
    let fast = format!("0+{}x60", 100 - slow_iterations);
    input(&format!(r#"noroshi_loop_turn_seconds_bucket{{{labels},le="0.1"}}"#), &fast);
    text += "    promql_expr_test:\n      - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n";
    text += "        eval_time: 50m\n        exp_samples:\n";
    for alert in alerts {
        text += &format!("          - {{labels: '{{alertname=\"{alert}\"}}', value: 1}}\n");
    }
    text
}

#[test]
fn alerts_fire_for_a_broken_server_and_not_for_a_healthy_one() {
    let Some(promtool) = find(PROMTOOL) else { return };
    let text = deploy_file("alerts.yaml");
    let alerts: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    let home = Folder::new("alerts");
    let file = home.0.join("test.yaml");
    let head = format!("rule_files: [{}]\nevaluation_interval: 1m\ntests:\n", path("alerts.yaml").display());
    let tests = promtool_test(&BROKEN, 10, &alerts) + &promtool_test(&HEALTHY, 0, &[]);
    std::fs::write(&file, head + &tests).unwrap();
    assert_success(Command::new(promtool).args(["test", "rules"]).arg(&file));
}

#[test]
fn alerts_use_metrics_that_the_server_has() {
    let (server, _stderr) = run(r#"exec "$0""#);
    let metrics = server.request(server.metrics, "/metrics");
    let text = deploy_file("alerts.yaml");
    let is_part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names: Vec<&str> = text
        .split(|c: char| !is_part_of_name(c))
        .filter(|word| word.starts_with("noroshi_") || word.starts_with("process_"))
        .collect();
    names.sort();
    names.dedup();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(metrics.contains(&format!("\n{name}")), "{name}");
    }
}
