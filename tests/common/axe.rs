//! Whether a page is there for those who do not see it, or see little.

use serde_json::json;

use super::browser::Browser;
use super::chromium::Chromium;
use super::program::npm;

/// The rules of axe-core, from npm.
pub fn axe() -> Option<String> {
    let home = npm("axe-core")?;
    let rules = std::fs::read_to_string(home.join("node_modules/axe-core/axe.min.js")).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    Some(rules)
}

/// What axe finds, in each look.
pub fn judge(browser: &mut Chromium, axe: &str) {
    browser.eval(&format!("{axe}; 0"));
    for (width, colors) in [(1100, "light"), (1100, "dark"), (320, "light")] {
        browser.resize(width, 780, colors);
        let found = browser.eval(
            "(await axe.run({ resultTypes: ['violations'] })).violations
                .map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])",
        );
        assert_eq!(found, json!([]), "{width} {colors}");
    }
    // WCAG 1.4.11, which axe leaves to people: the edge of a field stands out from what is around it.
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
