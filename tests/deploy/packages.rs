//! The released files: the static binary, other processors, the image and the Debian package. Building them takes
//! minutes, so the tests run only with TEST_DIST=1.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Instant;

use crate::common::files::Folder;
use crate::common::process::{eventually, run};
use crate::common::program::{find, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const X86_64: &str = "x86_64-unknown-linux-musl";
const AARCH64: &str = "aarch64-unknown-linux-musl";
const ARMV7: &str = "armv7-unknown-linux-gnueabihf";

/// Prints a line without a macro, because the test harness captures the output of print macros.
fn print_line(line: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{line}").unwrap();
}

fn is_dist_requested() -> bool {
    std::env::var_os("TEST_DIST").is_some()
}

fn failure(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the folder with the released files, which are built once for all tests.
fn dist() -> Option<&'static Path> {
    static DIST: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        if !is_dist_requested() {
            print_line("SKIPPED the packages: to build them takes minutes; TEST_DIST=1 has them built");
            return None;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let began = Instant::now();
        let mut script = Command::new(root.join("scripts/dist.sh"));
        script.args([X86_64, AARCH64, ARMV7]);
        let output = script.output().unwrap();
        assert!(output.status.success(), "{}", failure(&output));
        print_line(&format!("the packages were built in {:?}", began.elapsed()));
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        Some(root.join(target).join("dist"))
    };
    DIST.get_or_init(build).as_deref()
}

/// Returns the only package whose name ends like this.
fn package(dist: &Path, end: &str) -> String {
    let mut names = dist.read_dir().unwrap().map(|entry| entry.unwrap().path().display().to_string());
    names.find(|name| name.ends_with(end)).unwrap_or_else(|| panic!("there is no …{end}"))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Runs the binary as the image does: with its user, its two commands, and a root that contains one file.
#[test]
fn static_binary_needs_no_other_file() {
    let Some(dist) = dist() else { return };
    let image = include_str!("../../scripts/deploy/Dockerfile");
    let user = image.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(
        image.contains("\nENTRYPOINT [\"/noroshi\"]") && image.contains("CMD [\"/noroshi\", \"health\"]")
    );
    let root = Folder::new("chroot");
    std::fs::copy(package(dist, X86_64), root.0.join("noroshi")).unwrap();
    let root = root.0.display();
    let command = match is_root() {
        true => format!("exec chroot --userspec={user}:{user} {root} /noroshi"),
        false => format!("exec unshare -r chroot {root} /noroshi"),
    };
    let (server, _stderr) = run(&command);
    assert!(server.is_healthy());
    print_line(&format!("{X86_64} has {} KiB of memory at start", server.memory().0 / 1024));
    let health =
        |url: &str| Command::new("sh").args(["-c", &format!("{command} health {url}")]).output().unwrap();
    let output = health(&format!("http://{}", server.address));
    assert!(output.status.success() && failure(&output).is_empty(), "{}", failure(&output));
    assert_eq!(health("http://127.0.0.1:1").status.code(), Some(1));
}

/// Emulators and linkers of the other processors.
const OTHERS: [(&str, &str, &str); 2] = [
    (AARCH64, "qemu-aarch64", "rust-lld"),
    (ARMV7, "qemu-arm -L /usr/arm-linux-gnueabihf", "arm-linux-gnueabihf-gcc"),
];

/// Builds with buildah, because docker needs a daemon. Commands run in their own root and share this machine's network.
#[test]
fn image_is_built_and_serves() {
    let Some(dist) = dist() else { return };
    if find("buildah").is_none() || !is_root() {
        return;
    }
    let home = Folder::new("image");
    let tool = |arguments: &[&str]| {
        let mut buildah = Command::new("buildah");
        buildah.args(["--storage-driver", "vfs", "--root"]).arg(home.0.join("root"));
        buildah.arg("--runroot").arg(home.0.join("run")).args(arguments);
        buildah
    };
    let done = |arguments: &[&str]| {
        let output = tool(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", failure(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("scripts/deploy/Dockerfile").display().to_string();
    let context = dist.display().to_string();
    done(&["bud", "--format=docker", "--isolation=chroot", "-f", &file, "-t", "it", &context]);
    let config = "--format={{.Docker.Config.User}} {{.Docker.Config.Healthcheck.Test}}";
    assert_eq!(done(&["inspect", "--type=image", config, "it"]), "65534 [CMD /noroshi health]");
    let container = done(&["from", "it"]);
    let mut run = tool(&["run", "--isolation=chroot", &container, "--", "/noroshi"]);
    let address = format!("127.0.0.1:{}", free_port());
    let mut server = run.args(["-l", &address, "--log=error"]).spawn().unwrap();
    eventually("it serves", || {
        let health = [
            "run",
            "--isolation=chroot",
            &container,
            "--",
            "/noroshi",
            "health",
            &format!("http://{address}"),
        ];
        tool(&health).output().unwrap().status.success()
    });
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    eventually("it stops", || TcpStream::connect(&address).is_err());
}

#[test]
fn binaries_for_other_processors_serve_and_pass_unit_tests() {
    let Some(dist) = dist() else { return };
    for (target, emulator, linker) in OTHERS {
        if find(emulator.split(' ').next().unwrap()).is_none() {
            continue;
        }
        let variable =
            |end: &str| format!("CARGO_TARGET_{}_{end}", target.to_ascii_uppercase().replace('-', "_"));
        let mut tests = Command::new(env!("CARGO"));
        tests.args(["test", "--quiet", "--locked", "--lib", "--target", target]);
        let output =
            tests.env(variable("LINKER"), linker).env(variable("RUNNER"), emulator).output().unwrap();
        assert!(output.status.success(), "{target}: {}", failure(&output));
        let (server, _stderr) = run(&format!("exec {emulator} {}", package(dist, target)));
        assert!(server.is_healthy(), "{target}");
        let health = format!("{emulator} {} health http://{}", package(dist, target), server.address);
        assert!(Command::new("sh").args(["-c", &health]).status().unwrap().success(), "{target}");
    }
}

/// In CI the package is installed on the machine itself, elsewhere in a directory that package scripts know as
/// DPKG_ROOT.
#[test]
fn debian_package_is_installed_and_removed() {
    let Some(dist) = dist() else { return };
    let (Some(_), Some(_)) = (find("dpkg"), find("cargo-deb")) else { return };
    let folder = Folder::new("dpkg");
    let is_real = is_root() && std::env::var_os("CI").is_some();
    let root = if is_real { PathBuf::from("/") } else { folder.0.clone() };
    if !is_real {
        for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    }
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new(if is_root() { "env" } else { "unshare" });
        command.args((!is_root()).then_some("-r")).arg("dpkg");
        if !is_real {
            command.arg(format!("--root={}", root.display())).arg("--force-script-chrootless");
        }
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", failure(&output));
    };
    let program = root.join("usr/bin/noroshi");
    assert!(!program.exists(), "{} is there already", program.display());
    dpkg(&["-i", &package(dist, "_amd64.deb")]);
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert_eq!(version.stdout, format!("noroshi {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/noroshi.service")).unwrap();
    assert_eq!(unit, include_str!("../../scripts/deploy/noroshi.service"));
    dpkg(&["-P", "noroshi"]);
    assert!(!program.exists() && !root.join("usr/lib/systemd/system/noroshi.service").exists());
}
