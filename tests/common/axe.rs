//! Accessibility checks with axe-core.

use serde_json::json;

use super::browser::Browser;
use super::chromium::Chromium;
use super::program::npm;

/// Installs axe-core from npm and returns its source. `None` without npm.
pub fn axe() -> Option<String> {
    let home = npm("axe-core")?;
    let rules = std::fs::read_to_string(home.join("node_modules/axe-core/axe.min.js")).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    Some(rules)
}

/// Asserts that axe finds no violation in light and dark colors and on a narrow screen.
pub fn assert_accessible(browser: &mut Chromium, axe: &str) {
    browser.eval(&format!("{axe}; 0"));
    for (width, colors) in [(1100, "light"), (1100, "dark"), (320, "light")] {
        browser.resize(width, 780, colors);
        let found = browser.eval(
            "(await axe.run({ resultTypes: ['violations'] })).violations
                .map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])",
        );
        assert_eq!(found, json!([]), "{width} {colors}");
    }
    // WCAG 1.4.11 (non-text contrast), which axe does not check: a field's border has a contrast of at least 3 to its
    // background.
    let faint = browser.eval(
        "(() => {
            const lightness = (color) => {
                const [r, g, b] = color.match(/[\\d.]+/g).map((it) => it / 255).map((it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
            };
            const ground = (it) => { const color = getComputedStyle(it).backgroundColor; return /, 0\\)$/.test(color) ? ground(it.parentElement) : color; };
            const fields = [...document.querySelectorAll('input, textarea, button:not(.main)')].filter((it) => it.checkVisibility());
            return fields.filter((it) => {
                const [edge, around] = [getComputedStyle(it).borderColor, ground(it.parentElement)].map(lightness);
                return Math.max(edge, around) / Math.min(edge, around) < 3;
            }).map((it) => it.id || it.className);
        })()",
    );
    assert_eq!(faint, json!([]));
}
