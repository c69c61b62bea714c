//! Operations that tests use in every browser.

use std::cell::Cell;
use std::thread::sleep;
use std::time::Instant;

use serde_json::Value;

use super::program::{WAIT_TIMEOUT, is_installed};
use super::shared_resource::{Reserved, SharedResource};

/// Browsers that run at the same time. More would overload two cores, and waiting would time out.
const BROWSERS_MAX: usize = 4;

static BROWSERS: SharedResource = SharedResource::new();

thread_local! {
    /// Whether the test on this thread has a reservation.
    static HAS_RESERVATION: Cell<bool> = const { Cell::new(false) };
}

/// Permits a test to start some browsers, until it is dropped.
pub struct BrowserReservation(#[expect(dead_code, reason = "dropping it releases the browsers")] Reserved);

/// Waits until a test may start this many browsers. `None` if a program is missing.
pub fn reserve_browsers(count: usize, programs: &[&str]) -> Option<BrowserReservation> {
    assert!(count <= BROWSERS_MAX && !HAS_RESERVATION.get(), "a test reserves all its browsers at once");
    if !programs.iter().all(|program| is_installed(program)) {
        return None;
    }
    let reserved = BROWSERS.reserve(count, BROWSERS_MAX);
    HAS_RESERVATION.set(true);
    Some(BrowserReservation(reserved))
}

/// Asserts that the test has reserved its browsers.
pub fn assert_reservation() {
    assert!(HAS_RESERVATION.get(), "call reserve_browsers() before a browser starts");
}

impl Drop for BrowserReservation {
    fn drop(&mut self) {
        HAS_RESERVATION.set(false);
    }
}

/// A key that [`Browser::press`] presses.
#[derive(Clone, Copy)]
pub enum Key {
    Tab,
    Enter,
    Escape,
}

/// Controls a browser with one tab and its own profile. The process is killed when the value is dropped.
pub trait Browser {
    fn open(&mut self, url: &str);

    /// Evaluates an expression in the page, as the console does, with user activation. Declarations remain for later
    /// calls. In Firefox an expression with `await` is a single expression and cannot declare anything.
    fn eval(&mut self, expression: &str) -> Value;

    /// Types a text into the element at this selector and presses Enter.
    fn type_text(&mut self, selector: &str, text: &str);

    /// Presses and releases a key.
    fn press(&mut self, key: Key);

    /// Sets the viewport in pixels.
    fn set_viewport(&mut self, width: u32, height: u32);

    /// Takes a screenshot of the page, as PNG.
    fn screenshot(&mut self) -> Vec<u8>;

    /// Returns the console errors so far: exceptions, calls of `console.error`, violations of the content security
    /// policy and, in Chromium, failed requests.
    fn errors(&mut self) -> &mut Vec<String>;

    /// Waits until an expression is truthy.
    #[track_caller]
    fn wait_until(&mut self, expression: &str) {
        let began = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            if began.elapsed() > WAIT_TIMEOUT {
                let page = self.eval("document.body.innerText");
                panic!("timed out: {expression}\n{:#?}\n{}", self.errors(), page.as_str().unwrap());
            }
            sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Asserts that the console has no errors except those that the browser reports for failed requests and connections.
    #[track_caller]
    fn assert_no_errors(&mut self) {
        self.eval("0");
        let own = [
            r#""source":"network""#,
            r#""category":"cors""#,
            r#""text":"Firefox can’t establish a connection to the server at ws://"#,
            r#""text":"The connection to ws://"#,
            r#""text":"WebRTC: ICE failed"#,
        ];
        self.errors().retain(|error| !own.iter().any(|own| error.contains(own)));
        assert!(self.errors().is_empty(), "{:#?}", self.errors());
    }
}
