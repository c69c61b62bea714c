//! What a browser is served: the page at `/`, the client library, which it uses and others may, and the page at `/check`.
//! All are built into the program.

use crate::paths::PAGES;

/// The page: one document with its style and its script.
pub const PAGE: File = File {
    kind: "text/html; charset=utf-8",
    body: include_str!("web/index.html"),
    policy: Some(PAGE_POLICY),
    is_shared: false,
};

/// The page that says whether a deployment works from where it is opened. It goes without the library, because it tells
/// apart what that makes good by itself.
pub const CHECK: File = File {
    kind: "text/html; charset=utf-8",
    body: include_str!("web/check.html"),
    policy: Some(CHECK_POLICY),
    is_shared: false,
};

/// The client library, an ES module.
pub const LIBRARY: File = File {
    kind: "text/javascript; charset=utf-8",
    body: include_str!("web/noroshi.js"),
    policy: None,
    is_shared: true,
};

/// What the page may do (CSP3): run its own script and the library, have its own style and the icon in its head, and
/// speak with this server. The hashes are those of its elements; a test computes them.
const PAGE_POLICY: &str = "default-src 'none'; \
    script-src 'self' 'sha256-+c8SQpVR8LGDPYq87x7ydtucxOP4+pifi8Hh+2D5Vvs='; \
    style-src 'sha256-fbUl1+zs7Fre/xp/T0EqDbcfyQ+j67rNFAT76hdjN0o='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The same for the other page, which has a script of its own only.
const CHECK_POLICY: &str = "default-src 'none'; \
    script-src 'sha256-lAMyMdGH6qB2ksPRIDIcZdu7GpbYsH9bhxtrU8TsN8I='; \
    style-src 'sha256-7eusNBOOLRWHxdh2cWIjdKZ0ka6M5EmT929WMc69WbY='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file as it is served.
pub struct File {
    /// Its media type.
    pub kind: &'static str,
    /// What is in it.
    pub body: &'static str,
    /// Its `Content-Security-Policy`, if it is a document.
    pub policy: Option<&'static str>,
    /// Whether pages of other origins may load it, if they may connect.
    pub is_shared: bool,
}

impl File {
    /// Its entity tag (RFC 9110 section 8.8.3): FNV-1a of the bytes, so that it changes when they do.
    pub fn etag(&self) -> String {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        format!("\"{:016x}\"", self.body.bytes().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

/// The files, in the order of [`PAGES`].
const FILES: [&File; PAGES.len()] = [&PAGE, &CHECK, &LIBRARY];

/// Returns the file that is served at a path.
pub fn at(path: &str) -> Option<&'static File> {
    let index = PAGES.iter().position(|page| *page == path)?;
    Some(FILES[index])
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use sha2::{Digest, Sha256};

    use super::*;

    /// The text of the only element with this start tag.
    fn element(page: &File, start: &str, end: &str) -> &'static str {
        let (before, rest) = page.body.split_once(start).expect(start);
        let (text, after) = rest.split_once(end).expect(end);
        assert!(!before.contains(end) && !after.contains(end), "there is one");
        text
    }

    #[test]
    fn the_policies_let_the_pages_do_what_they_do_and_nothing_else() {
        for page in [PAGE, CHECK] {
            let policy = page.policy.expect("it is a document");
            for (start, end) in [("<script type=\"module\">", "</script>"), ("<style>", "</style>")] {
                let hash = format!("'sha256-{}'", BASE64.encode(&Sha256::digest(element(&page, start, end))));
                assert!(policy.contains(&hash), "the policy needs {hash} for {start}");
            }
            assert_eq!(policy.matches("'sha256-").count(), 2);
            // What a policy by hashes forbids, and what would come from elsewhere.
            for foreign in [" style=", " onclick=", " onload=", "src=", "url(", "@import"] {
                assert!(!page.body.contains(foreign), "{foreign}");
            }
        }
    }

    #[test]
    fn the_library_is_as_small_as_promised() {
        assert!(LIBRARY.body.lines().count() <= 520);
        let imports = LIBRARY.body.lines().filter(|line| line.starts_with("import"));
        assert_eq!(imports.count(), 0);
    }

    #[test]
    fn entity_tags() {
        let file = |body| File { body, ..LIBRARY };
        // From the reference implementation of FNV.
        assert_eq!(file("").etag(), "\"cbf29ce484222325\"");
        assert_eq!(file("foobar").etag(), "\"85944171f73967e8\"");
        assert_ne!(PAGE.etag(), LIBRARY.etag());
    }
}
