//! The files for browsers, built into the program: the demonstration page at `/`, the client library, and the page
//! that tests a deployment at `/check`.

use crate::http::paths::{MODULES, PAGES};

/// The demonstration page: one document with its style and its script.
pub const PAGE: File = File {
    content_type: "text/html; charset=utf-8",
    body: include_str!("web/index.html"),
    csp: Some(PAGE_POLICY),
    is_cross_origin: false,
};

/// The page that tests a deployment from the browser that opens it.
///
/// It does not use the library, because it reports errors that the library recovers from.
pub const CHECK: File = File {
    content_type: "text/html; charset=utf-8",
    body: include_str!("web/check.html"),
    csp: Some(CHECK_POLICY),
    is_cross_origin: false,
};

/// The client library: the ES module that pages import.
pub const LIBRARY: File = File::module(include_str!("web/noroshi.js"));

/// Lists files of the folder `web/noroshi` by name.
macro_rules! library_modules {
    ($($name:literal,)*) => {
        [$(($name, File::module(include_str!(concat!("web/noroshi/", $name))))),*]
    };
}

/// The modules that [`LIBRARY`] imports, with their names below [`MODULES`]. To add a module, add its name.
#[rustfmt::skip]
pub(crate) static LIBRARY_MODULES: &[(&str, File)] = &library_modules![
    "connection.js",
    "errors.js",
    "events.js",
    "identity.js",
    "media.js",
    "peer.js",
    "peer_session.js",
    "room.js",
    "sdp.js",
    "share.js",
    "signaling.js",
    "transfer.js",
];

/// The library with which the demonstration page draws QR codes: another project's file, which is not part of ours.
pub const QR_CODES: File = File { is_cross_origin: false, ..File::module(include_str!("web/qrcode.js")) };

/// The Content-Security-Policy (CSP level 3) of the demonstration page.
///
/// It permits the script and the style of the page, by their hashes, the libraries, the icon in its head, and connections to
/// this server. A test compares the hashes with the elements.
const PAGE_POLICY: &str = "default-src 'none'; \
    script-src 'self' 'sha256-9upB/43Th64rcd6qYcvXMmplv+0qGtuCsglxEoYIynY='; \
    style-src 'sha256-Ha8+ghAry32qWL0rxglaFHGqRg4x9nmCdOvu+HxLqVs='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The Content-Security-Policy of the page that tests a deployment, which does not use the library.
const CHECK_POLICY: &str = "default-src 'none'; \
    script-src 'sha256-4Vqp4ITqc5NPrfdPEfQWScABbR0jzq8dJl8dt6O/GbQ='; \
    style-src 'sha256-7eusNBOOLRWHxdh2cWIjdKZ0ka6M5EmT929WMc69WbY='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The directive of the policies that limits connections.
const CONNECT_SRC: &str = "connect-src 'self'";

/// Maximum bytes of a `Host` that a policy names: those of a domain name (RFC 1035 section 2.3.4), a colon and a port.
const POLICY_HOST_BYTES_MAX: usize = 255 + 6;

/// A file and its response headers.
pub struct File {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The content.
    pub body: &'static str,
    /// `Content-Security-Policy`, for documents. [`File::policy`] adds the host.
    csp: Option<&'static str>,
    /// Whether pages of other allowed origins may load it.
    pub is_cross_origin: bool,
}

impl File {
    /// A module of the client library. Its importers may be pages of other origins.
    const fn module(body: &'static str) -> File {
        File { content_type: "text/javascript; charset=utf-8", body, csp: None, is_cross_origin: true }
    }

    /// Returns the `Content-Security-Policy` for a request with this `Host`.
    ///
    /// Safari before 16 does not count WebSockets to the host of the page as `'self'`, so the policy names them. A host that
    /// policies cannot name is left out: browsers would ignore it, or it could end the directive.
    pub fn policy(&self, host: Option<&str>) -> Option<String> {
        let policy = self.csp?;
        Some(match host.filter(|host| is_policy_host(host)) {
            Some(host) => policy.replace(CONNECT_SRC, &format!("{CONNECT_SRC} ws://{host} wss://{host}")),
            None => policy.to_owned(),
        })
    }

    /// Returns the entity tag (RFC 9110 section 8.8.3): the FNV-1a hash of the content.
    pub fn etag(&self) -> String {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let mut hash = OFFSET_BASIS;
        for byte in self.body.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        format!("\"{hash:016x}\"")
    }
}

/// The files, in the order of [`PAGES`].
const FILES: [&File; PAGES.len()] = [&PAGE, &CHECK, &LIBRARY, &QR_CODES];

/// Returns whether a `Host` is a `host-part` with an optional `port-part` (CSP level 3, section 2.3.1).
///
/// That is a name of letters, digits, hyphens and dots, or an IPv4 address. IPv6 addresses and names with underscores are
/// not: Chromium ignores them and reports an error.
fn is_policy_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.len() <= POLICY_HOST_BYTES_MAX && is_port && name.split('.').all(is_label)
}

/// Returns the file at a path.
pub fn find(path: &str) -> Option<&'static File> {
    let name = path.strip_prefix(MODULES).and_then(|rest| rest.strip_prefix('/'));
    if let Some(name) = name {
        let module = LIBRARY_MODULES.iter().find(|(known, _)| *known == name);
        return module.map(|(_, file)| file);
    }
    let index = PAGES.iter().position(|page| *page == path)?;
    Some(FILES[index])
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Returns the text of the only element with this start tag.
    fn element(page: &File, start: &str, end: &str) -> &'static str {
        let (before, rest) = page.body.split_once(start).expect(start);
        let (text, after) = rest.split_once(end).expect(end);
        assert!(!before.contains(end) && !after.contains(end), "expected one {start}");
        text
    }

    #[test]
    fn policies_permit_only_the_scripts_and_styles_of_the_pages() {
        for page in [PAGE, CHECK] {
            let policy = page.csp.expect("it is a document");
            for (start, end) in [("<script type=\"module\">", "</script>"), ("<style>", "</style>")] {
                let hash = format!("'sha256-{}'", BASE64.encode(&Sha256::digest(element(&page, start, end))));
                assert!(policy.contains(&hash), "the policy needs {hash} for {start}");
            }
            assert_eq!(policy.matches("'sha256-").count(), 2);
            assert_eq!(policy.matches(&format!("; {CONNECT_SRC};")).count(), 1);
            assert_eq!(policy.matches("connect-src").count(), 1);
            // A policy by hashes forbids inline attributes, and nothing may be loaded from another place.
            for foreign in [" style=", " onclick=", " onload=", "src=", "url(", "@import"] {
                assert!(!page.body.contains(foreign), "{foreign}");
            }
        }
    }

    #[test]
    fn policy_names_the_websockets_of_a_plain_host() {
        let long = format!("{}.example:65535", "x".repeat(POLICY_HOST_BYTES_MAX - ".example:65535".len()));
        for host in [
            "example.com",
            "EXAMPLE.com:8443",
            "a-b.example",
            "localhost:8080",
            "127.0.0.1:8080",
            "xn--wgv71a119e.example:443",
            &long,
        ] {
            let policy = PAGE.policy(Some(host)).expect("it is a document");
            let expected = format!("; connect-src 'self' ws://{host} wss://{host}; ");
            assert!(policy.contains(&expected), "{policy}");
            assert_eq!(Some(policy.replace(&expected, "; connect-src 'self'; ")), PAGE.policy(None));
        }
        let too_long = format!("x{long}");
        for host in [
            "",
            ".",
            "example.com.",
            ".example.com",
            "a..b",
            ":8080",
            "h:",
            "h:x",
            "h:80:80",
            "h:-1",
            "[::1]:8080",
            "::1",
            "a_b.example",
            "*",
            "*.example.com",
            "h;script-src *",
            "h; script-src *",
            "h,default-src *",
            "h 'unsafe-inline'",
            "h\r\nX: y",
            "h\n",
            "h\tx",
            "h/",
            "h/path",
            "h?x",
            "h#x",
            "user@h",
            "'self'",
            "\"h\"",
            "%68",
            "é",
            "日本",
            "h\0",
            &too_long,
        ] {
            assert_eq!(PAGE.policy(Some(host)), PAGE.policy(None), "{host:?}");
        }
        assert_eq!(LIBRARY.policy(Some("h")), None);
    }

    #[test]
    fn every_module_of_the_folder_is_served() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/noroshi");
        let entries = std::fs::read_dir(folder).unwrap();
        let mut files: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        let mut names: Vec<&str> = LIBRARY_MODULES.iter().map(|(name, _)| *name).collect();
        names.sort();
        assert_eq!(names, files);
        for (name, file) in LIBRARY_MODULES {
            let found = find(&format!("{MODULES}/{name}")).expect(name);
            assert!(std::ptr::eq(found, file), "{name}");
        }
        for path in
            ["/noroshi", "/noroshi/", "/noroshi/none.js", "/noroshi/noroshi.js", "/noroshi/../noroshi.js"]
        {
            assert!(find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn page_preloads_every_module() {
        let preloads =
            PAGE.body.lines().filter_map(|line| line.strip_prefix("<link rel=\"modulepreload\" href=\"."));
        let mut preloads: Vec<&str> = preloads.map(|line| line.trim_end_matches("\">")).collect();
        preloads.sort();
        let modules = LIBRARY_MODULES.iter().map(|(name, _)| format!("{MODULES}/{name}"));
        let mut expected: Vec<String> = modules.collect();
        expected.extend(["/noroshi.js", "/qrcode.js"].map(str::to_owned));
        expected.sort();
        assert_eq!(preloads, expected);
    }

    /// Returns the module specifiers of the `import` and `export … from` in a script, also the dynamic ones with a literal.
    fn specifiers(script: &str) -> Vec<&str> {
        let mut specifiers = Vec::new();
        for line in script.lines().map(str::trim_start) {
            if line.starts_with("//") || line.starts_with('*') || line.starts_with("/*") {
                continue;
            }
            for keyword in ["from ", "import ", "import("] {
                // In a text, the word `from` may be followed by a quote too.
                let is_clause = ["import", "export", "}"].iter().any(|start| line.starts_with(start));
                if keyword == "from " && !is_clause {
                    continue;
                }
                for (at, _) in line.match_indices(keyword) {
                    let after = line[at + keyword.len()..].trim_start();
                    let Some(quote) = after.chars().next().filter(|first| ['"', '\'', '`'].contains(first))
                    else {
                        continue;
                    };
                    specifiers.push(after[1..].split(quote).next().expect("the text after a quote"));
                }
            }
        }
        specifiers
    }

    #[test]
    fn specifiers_of_a_script_are_found() {
        let script = "
            import { a } from \"./a.js\";
            import * as b from './b.js'; export * from \"../b.js\";
            import {
                c,
            } from \"./c.js\";
            import \"./d.js\";
            const e = await import(\"./e.js\");
            // import { no } from \"./comment.js\";
            /** @param {import(\"./type.js\").T} x */
            const importance = from + \"text\";
            note(`lines from `, name);
        ";
        let expected = ["./a.js", "./b.js", "../b.js", "./c.js", "./d.js", "./e.js"];
        assert_eq!(specifiers(script), expected);
    }

    #[test]
    fn imports_lead_to_paths_that_are_served() {
        let modules = LIBRARY_MODULES.iter().map(|(name, file)| (format!("{MODULES}/{name}"), file));
        let pages = PAGES.iter().map(|path| (*path).to_owned()).zip(FILES);
        for (path, file) in pages.chain(modules) {
            let (folder, _) = path.rsplit_once('/').expect("a path begins with a slash");
            for specifier in specifiers(file.body) {
                let imported = match (specifier.strip_prefix("./"), specifier.strip_prefix("../")) {
                    (Some(name), _) => format!("{folder}/{name}"),
                    (_, Some(name)) => {
                        let (parent, _) = folder.rsplit_once('/').expect("the root has no parent");
                        format!("{parent}/{name}")
                    }
                    _ => panic!("{path} imports {specifier}: the library has no dependencies"),
                };
                let file = find(&imported)
                    .unwrap_or_else(|| panic!("{path} imports {imported}, which is not served"));
                assert!(file.is_cross_origin || path == "/", "{path} imports {imported}");
            }
        }
        assert_eq!(specifiers(PAGE.body), ["./noroshi.js", "./qrcode.js"]);
    }

    #[test]
    fn entity_tag_is_the_fnv_1a_hash() {
        let file = |body| File { body, ..LIBRARY };
        // The expected values are from the reference implementation of FNV.
        assert_eq!(file("").etag(), "\"cbf29ce484222325\"");
        assert_eq!(file("foobar").etag(), "\"85944171f73967e8\"");
        assert_ne!(PAGE.etag(), LIBRARY.etag());
    }
}
