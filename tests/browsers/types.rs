//! TypeScript types of the client library, from its comments, including the data of each event.

use std::path::Path;
use std::process::Command;

use crate::common::program::npm;
use crate::common::readme::read;

/// Returns tsc's output for a module beside the library.
fn assert_accessible(home: &Path, file: &str, text: &str) -> String {
    std::fs::write(home.join(file), text).unwrap();
    let flags =
        "--noEmit --allowJs --checkJs --strict --target esnext --module esnext --moduleResolution bundler";
    let tsc = home.join("node_modules/.bin/tsc");
    let output = Command::new(tsc).args(flags.split(' ')).arg(file).current_dir(home).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn examples_of_the_documentation_pass_the_type_check_and_wrong_calls_fail() {
    let Some(home) = npm("typescript") else { return };
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web/noroshi.js"), home.join("noroshi.js"))
        .unwrap();
    let text = read("README.md") + &read("src/web/README.md");
    // The example of the README is a script in a page.
    let text = text.replace("```html\n<script type=\"module\">\n", "```js\n").replace("</script>\n", "");
    let examples: Vec<String> = text
        .split("```js\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().replace("http://localhost:8080/", "./"))
        .filter(|example| example.contains("./noroshi.js"))
        .collect();
    assert_eq!(examples.len(), 3);
    for example in &examples {
        for file in ["example.mjs", "example.mts"] {
            assert_eq!(assert_accessible(&home, file, example), "", "{example}");
        }
    }
    for (right, wrong) in
        [("peer.send(", "peer.say("), ("\"open\"", "\"opened\""), ("({ data })", "({ track })")]
    {
        let example = &examples[1];
        assert!(example.contains(right), "{right}");
        assert!(
            assert_accessible(&home, "wrong.mjs", &example.replace(right, wrong)).contains("error TS"),
            "{wrong}"
        );
    }
    std::fs::remove_dir_all(home).unwrap();
}
