//! A page with pictures and the answers before and after.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use reground_learner::pocket::held_out::Example;
use reground_learner::pocket::random::stream;
use reground_learner::pocket::text::{Caption, Detail};

use super::world::data_url;

/// Writes it; the pictures are inside.
pub(super) fn write(path: &Path, shown: &[Example], before: &[String], after: &[String], table: &str) -> Result<()> {
    let mut page = String::from(HEAD);
    for ((example, before), after) in shown.iter().zip(before).zip(after) {
        let right = Caption::of(&example.scene, Detail::Full, &mut stream(0, "demo page", 0)).to_string();
        let image = data_url(&example.image)?;
        writeln!(
            page,
            "<figure><img src=\"{image}\" alt=\"\"><figcaption><p><b>before</b> {}</p><p><b>after</b> {}</p>\
             <p class=\"right\"><b>right</b> {}</p></figcaption></figure>",
            escaped(before),
            escaped(after),
            escaped(&right)
        )?;
    }
    writeln!(page, "<h2>Measured on held-out pictures</h2>\n<pre>{}</pre>\n</main>", escaped(table))?;
    fs_err::write(path, page).context("the page cannot be written")
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Reground demo</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1d2433; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(28rem, 1fr)); gap: 1rem; }
h1, h2, pre { grid-column: 1 / -1; }
figure { display: flex; gap: 1rem; margin: 0; padding: 1rem; border: 1px solid #d8dde6; border-radius: 8px; }
img { width: 128px; height: 128px; image-rendering: pixelated; }
p { margin: 0 0 .4rem; } b { display: inline-block; width: 3.6rem; color: #667; font-weight: 600; } .right { color: #667; }
pre { overflow-x: auto; background: #f5f6f8; padding: 1rem; border-radius: 8px; }
</style>
<main><h1>The same questions, before and after</h1>
";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::world::shown;

    #[test]
    fn a_page_has_every_picture_and_no_markup_of_the_answers() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("page.html");
        let answers = ["<b>a</b>".to_owned(), "b & c".to_owned()];
        write(&path, &shown(0, 2), &answers, &answers, "a < b").unwrap();
        let page = fs_err::read_to_string(&path).unwrap();
        assert_eq!(page.matches("<img src=\"data:image/png").count(), 2);
        assert!(page.contains("&lt;b&gt;a&lt;/b&gt;") && page.contains("b &amp; c") && page.contains("a &lt; b"));
    }
}
