//! The files for browsers, built into the program: the demonstration page at `/`, the client library, and the page
//! that tests a deployment at `/check`.

use crate::http::paths::PAGES;

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

/// The client library, an ES module.
pub const LIBRARY: File = File {
    content_type: "text/javascript; charset=utf-8",
    body: include_str!("web/noroshi.js"),
    csp: None,
    is_cross_origin: true,
};

/// The Content-Security-Policy (CSP level 3) of the demonstration page.
///
/// It permits the script and the style of the page, by their hashes, the library, the icon in its head, and connections to
/// this server. A test compares the hashes with the elements.
const PAGE_POLICY: &str = "default-src 'none'; \
    script-src 'self' 'sha256-nzroDzswqR6NL5iKTVGvMyfTAj5MncjfvGw/4sIMKcg='; \
    style-src 'sha256-fbUl1+zs7Fre/xp/T0EqDbcfyQ+j67rNFAT76hdjN0o='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The Content-Security-Policy of the page that tests a deployment, which does not use the library.
const CHECK_POLICY: &str = "default-src 'none'; \
    script-src 'sha256-Im206rnfJTqz9vfEAritO5oYcAHxKchFBfrr9L1KNBM='; \
    style-src 'sha256-7eusNBOOLRWHxdh2cWIjdKZ0ka6M5EmT929WMc69WbY='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file and its response headers.
pub struct File {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The content.
    pub body: &'static str,
    /// `Content-Security-Policy`, for documents.
    pub csp: Option<&'static str>,
    /// Whether pages of other allowed origins may load it.
    pub is_cross_origin: bool,
}

impl File {
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
const FILES: [&File; PAGES.len()] = [&PAGE, &CHECK, &LIBRARY];

/// Returns the file at a path.
pub fn find(path: &str) -> Option<&'static File> {
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
            // A policy by hashes forbids inline attributes, and nothing may be loaded from another place.
            for foreign in [" style=", " onclick=", " onload=", "src=", "url(", "@import"] {
                assert!(!page.body.contains(foreign), "{foreign}");
            }
        }
    }

    #[test]
    fn library_has_no_imports() {
        let imports = LIBRARY.body.lines().filter(|line| line.starts_with("import"));
        assert_eq!(imports.count(), 0);
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
