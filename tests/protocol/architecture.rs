//! Checks the architecture that `lib.rs` describes: imports point one way, and each external crate is used in its own
//! files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::files::rust_files;
use noroshi::protocols;

/// Modules in the order of `lib.rs`. A module may import those that follow it.
const MODULES: [&str; 18] = [
    "server",
    "health",
    "session",
    "web",
    "protocols",
    "protocol",
    "metrics",
    "message",
    "rate_limit",
    "timestamp",
    "logger",
    "memory_budget",
    "config",
    "http",
    "json",
    "id",
    "limits",
    "named_enum",
];

/// The external crates of each file, besides the standard library.
const CRATES: [(&str, &[&str]); 23] = [
    ("mio", &["server"]),
    ("socket2", &["server"]),
    ("listenfd", &["server"]),
    ("sd_notify", &["server"]),
    ("signal_hook", &["server"]),
    ("signal_hook_mio", &["server"]),
    ("tungstenite", &["session", "http"]),
    ("httparse", &["http"]),
    ("serde_json", &["json"]),
    ("percent_encoding", &["http", "protocols"]),
    ("form_urlencoded", &["http"]),
    ("uuid", &["protocols"]),
    ("slab", &["server", "protocols"]),
    ("hashbrown", &["protocols"]),
    ("lexopt", &["config"]),
    ("sha1", &["protocols"]),
    ("data_encoding", &["protocols", "http"]),
    ("hmac", &["protocols", "http"]),
    ("sha2", &["http"]),
    ("simple_logger", &["logger"]),
    ("nix", &["logger", "main"]),
    ("log", &["server", "logger", "config", "main"]),
    // `protocols` has a module of the same name.
    ("noroshi", &["main", "protocols"]),
];

/// Returns the code lines of each file, without comments and tests, with its module: `http` contains `http.rs` and the
/// folder `http`.
fn files() -> Vec<(String, PathBuf, Vec<String>)> {
    let files = rust_files("src").into_iter().filter(|path| !path.ends_with("tests.rs"));
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let lines = text.lines().map(|line| line.split("//").next().unwrap().to_owned());
        let name = path.strip_prefix("src").unwrap().with_extension("");
        let module = name.iter().next().unwrap().to_str().unwrap().to_owned();
        (module, name, lines.collect())
    };
    files.map(read).collect()
}

/// Returns the code lines by module.
fn code() -> BTreeMap<String, Vec<String>> {
    let mut modules = BTreeMap::<String, Vec<String>>::new();
    for (module, _, lines) in files() {
        modules.entry(module).or_default().extend(lines);
    }
    modules
}

/// Returns whether a line contains a path that begins with this name.
fn names(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let before = line[..at].chars().next_back();
        !before.is_some_and(is_word) && line[at + name.len()..].starts_with("::")
    })
}

#[test]
fn files_match_the_module_map() {
    let files: Vec<String> = code().into_keys().collect();
    let mut expected = [&MODULES[..], &["lib", "main"]].concat();
    expected.sort();
    assert_eq!(files, expected);
    let lib = &code()["lib"];
    let declared = lib.iter().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    assert_eq!(declared.collect::<Vec<_>>(), MODULES);
}

#[test]
fn imports_point_downward() {
    let place = |name: &str| MODULES.iter().position(|module| *module == name);
    for (file, lines) in code() {
        for line in lines {
            for imported in line.split("crate::").skip(1) {
                let imported = imported.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                let to = place(imported).unwrap_or_else(|| panic!("{file}: {line}"));
                let allowed = match file.as_str() {
                    "main" | "server" => true,
                    // Modules that transport bytes and modules with protocol rules do not import each other.
                    "protocols" | "protocol" => !["server", "session", "web", "logger"].contains(&imported),
                    // A session knows bytes, but no protocol, no token and no limit of addresses.
                    "session" => [
                        "http",
                        "limits",
                        "message",
                        "timestamp",
                        "memory_budget",
                        "metrics",
                        "config",
                        "named_enum",
                    ]
                    .contains(&imported),
                    "rate_limit" => ["timestamp", "limits"].contains(&imported),
                    "memory_budget" | "health" => ["config", "limits"].contains(&imported),
                    "config" => ["http", "id", "limits"].contains(&imported),
                    // HTTP without configuration, protocols or decisions.
                    "http" => ["json", "id", "limits", "named_enum"].contains(&imported),
                    "logger" | "id" => imported == "limits",
                    "web" => imported == "http",
                    "metrics" | "message" | "json" | "limits" | "timestamp" | "named_enum" => false,
                    other => panic!("{other} has no rule"),
                };
                assert!(allowed, "{file} imports {imported}");
                assert!(
                    imported == file || place(&file).is_none_or(|from| from < to),
                    "{file} imports {imported}, which is above it"
                );
            }
        }
    }
}

/// Protocols share support modules and do not import each other.
#[test]
fn protocols_do_not_import_each_other() {
    let protocols = protocols::ALL.iter().map(|descriptor| descriptor.endpoint.name.replace('-', ""));
    let protocols: Vec<String> = protocols.collect();
    for (_, name, lines) in files() {
        let Ok(file) = name.strip_prefix("protocols") else { continue };
        // Only the file beside the folder imports all protocols.
        let Some(own) = file.iter().next().map(|own| own.to_str().unwrap()) else { continue };
        for line in &lines {
            for other in protocols.iter().filter(|other| *other != own) {
                assert!(!line.contains(&format!("protocols::{other}")), "{}: {line}", name.display());
            }
        }
    }
}

#[test]
fn crates_are_used_in_their_own_files() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let declared = dependencies.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    for name in declared {
        let name = name.replace('-', "_");
        assert!(CRATES.iter().any(|(known, _)| *known == name), "{name} has no place");
    }
    for (file, lines) in code() {
        for (name, places) in CRATES {
            let known = lines.iter().any(|line| names(line, name));
            assert_eq!(known, places.contains(&file.as_str()), "{file} and {name}");
        }
    }
}

/// The modules that do I/O.
const IMPURE_MODULES: [&str; 5] = ["server", "health", "session", "logger", "config"];

/// Files of these modules that do no I/O.
const PURE_FILES: [&str; 3] = ["server/admission", "session/close", "session/frame"];

#[test]
fn pure_modules_do_no_io() {
    let files = files();
    for pure in PURE_FILES {
        assert!(files.iter().any(|(_, name, _)| Path::new(pure) == name), "there is no {pure}");
    }
    for (module, name, lines) in files {
        let file = name.display();
        let is_pure =
            !IMPURE_MODULES.contains(&&*module) || PURE_FILES.iter().any(|pure| Path::new(pure) == name);
        if !is_pure || ["lib", "main"].contains(&&*module) {
            continue;
        }
        for line in &lines {
            for impure in [
                "std::io",
                "TcpStream",
                "TcpListener",
                "UdpSocket",
                "std::fs",
                "std::env",
                "std::thread",
                "Instant",
                "SystemTime",
                "println!",
            ] {
                assert!(!line.contains(impure), "{file}: {line}");
            }
        }
    }
}

/// The monotonic clock cannot be set. The wall clock is only for TURN credentials and tokens.
#[test]
fn only_the_monotonic_clock_is_used() {
    for (file, lines) in code() {
        for line in &lines {
            assert!(!line.contains("Instant::now") || file == "server", "{file}: {line}");
        }
        let lookups = lines.iter().filter(|line| line.contains("SystemTime::now")).count();
        assert_eq!(lookups, usize::from(file == "server" || file == "main"), "{file}");
    }
}

#[test]
fn unsafe_code_is_not_used() {
    for (file, lines) in code() {
        let forbids = lines.iter().any(|line| line == "#![forbid(unsafe_code)]");
        assert_eq!(forbids, file == "lib" || file == "main", "{file}");
    }
}

/// `src/README.md` lists the functions that a candidate passes. Each of them is in the file that is named beside it.
#[test]
fn reading_path_names_functions_that_exist() {
    let readme =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/README.md")).unwrap();
    let table = readme.split("## The path of a candidate").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut functions = 0;
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = row.split('`');
        let (function, file) = (cells.nth(1).unwrap(), cells.nth(1).unwrap());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let code = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let is_defined =
            [format!("fn {function}("), format!("fn {function}<")].iter().any(|it| code.contains(it));
        assert!(is_defined, "{file} has no {function}");
        functions += 1;
    }
    assert!(functions > 20, "{functions} functions");
}

/// The compiler does not report unused items of a crate for others.
#[test]
fn items_of_the_test_support_are_used() {
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    let code: String =
        ["tests", "scripts"].into_iter().flat_map(rust_files).map(|path| read(&path)).collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut uses = BTreeMap::<&str, usize>::new();
    for word in code.split(|c| !is_word(c)) {
        *uses.entry(word).or_default() += 1;
    }
    for path in rust_files("tests/common").iter().filter(|path| !path.ends_with("lib.rs")) {
        for line in read(path).lines() {
            let Some(item) = line.trim_start().strip_prefix("pub ") else { continue };
            let words = item.split(|c| !is_word(c)).filter(|word| !["const", "fn", "static"].contains(word));
            let mut words = words.skip_while(|word| ["struct", "enum", "trait", "type"].contains(word));
            let name = words.next().unwrap();
            assert!(uses[name] > 1, "{} has {name}, which is not used", path.display());
        }
    }
}
