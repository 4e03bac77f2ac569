//! The commands and manifests of docs/federation.md, as they stand there. Only addresses are put in; nothing else is changed, so that
//! whoever follows the page gets what is tested.

use anyhow::{Context, Result, ensure};

const PAGE: &str = include_str!("../../../docs/federation.md");

/// The block of the page that holds these words, without its fences.
pub fn block(words: &str) -> Result<String> {
    let mut blocks = PAGE.split("\n```").skip(1).step_by(2);
    let found =
        blocks.find(|block| block.contains(words)).with_context(|| format!("no block has {words}"))?;
    let (_language, text) = found.split_once('\n').context("an empty block")?;
    Ok(format!("{text}\n"))
}

/// The same for the other mesh: both names exchanged.
pub fn mirrored(text: &str) -> String {
    text.replace("a.example", "\0").replace("b.example", "a.example").replace('\0', "b.example")
}

/// With one word of the page replaced, which has to be there.
pub fn with(text: &str, word: &str, value: &str) -> Result<String> {
    ensure!(text.contains(word), "the page does not say {word} any more:\n{text}");
    Ok(text.replace(word, value))
}

/// Whether this stands anywhere on the page.
pub fn says(words: &str) -> bool {
    PAGE.contains(words)
}
