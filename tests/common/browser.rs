//! What a test does with a browser, whichever it is.

use std::thread::sleep;
use std::time::Instant;

use serde_json::Value;

use super::program::GIVE_UP;

/// A browser with one tab and a profile of its own, killed with the test.
pub trait Browser {
    /// Opens a page and waits until it is loaded.
    fn open(&mut self, url: &str);

    /// Evaluates an expression in the page, as its console would, and as if a user had clicked there. What it declares
    /// stays for the next. In Firefox, what awaits is one expression, and declares nothing.
    fn eval(&mut self, expression: &str) -> Value;

    /// Writes something where this selector points, and presses Enter.
    fn write(&mut self, selector: &str, text: &str);

    /// A picture of the page, as PNG.
    fn picture(&mut self) -> Vec<u8>;

    /// The errors in its console so far: exceptions, what `console.error` was called with, what a policy forbade, and in
    /// Chromium requests that failed.
    fn errors(&mut self) -> &mut Vec<String>;

    /// Waits until an expression is true, as `if` has it.
    #[track_caller]
    fn until(&mut self, expression: &str) {
        let began = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            if began.elapsed() > GIVE_UP {
                let page = self.eval("document.body.innerText");
                panic!("waited in vain: {expression}\n{:#?}\n{}", self.errors(), page.as_str().unwrap());
            }
            sleep(std::time::Duration::from_millis(20));
        }
    }

    /// That there was no error but those that the browser itself reports of requests that failed, or that it kept to itself.
    #[track_caller]
    fn is_content(&mut self) {
        self.eval("0");
        let own = [
            r#""source":"network""#,
            r#""category":"cors""#,
            r#""text":"Firefox can’t establish a connection to the server at ws://"#,
            r#""text":"The connection to ws://"#,
        ];
        self.errors().retain(|error| !own.iter().any(|own| error.contains(own)));
        assert!(self.errors().is_empty(), "{:#?}", self.errors());
    }
}
