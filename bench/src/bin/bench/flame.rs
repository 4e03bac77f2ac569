//! From what `perf script` prints to a flame graph: stacks are added up, and drawn as boxes whose width is their share of the
//! samples; callers below, callees above (Gregg, "The Flame Graph", CACM 59(6), 2016). Text in, text out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::svg::escape;

const WIDTH: f64 = 1400.0;
const ROW: f64 = 17.0;
/// Narrower boxes are left out, and so is what is above them.
const NARROWEST: f64 = 0.5;

/// How many samples each stack has; frames from the outermost inwards, with `;` between.
pub type Stacks = BTreeMap<String, u64>;

/// Adds up samples: blocks of `address symbol` lines, innermost first, with an empty line after each.
#[must_use]
pub fn collapse(script: &str) -> Stacks {
    let mut stacks = Stacks::new();
    let mut frames: Vec<String> = Vec::new();
    for line in script.lines().chain([""]) {
        if let Some((_, symbol)) = line.trim().split_once(' ') {
            frames.push(short(symbol));
        } else if line.trim().is_empty() && !frames.is_empty() {
            // Beyond the bytes of the stack that were kept.
            while frames.len() > 1 && frames.last().is_some_and(|frame| frame == "[unknown]") {
                frames.pop();
            }
            frames.reverse();
            *stacks.entry(frames.join(";")).or_default() += 1;
            frames.clear();
        }
    }
    stacks
}

/// A name that fits a box: no offset, no hash, no generics' insides.
fn short(symbol: &str) -> String {
    let symbol = symbol.trim().split("+0x").next().unwrap_or_default();
    let symbol = match symbol.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => name,
        _ => symbol,
    };
    let (mut name, mut depth) = (String::new(), 0_u32);
    // `<A as B>::c` keeps what is in its first brackets; `f<A, B>` does not keep what is in its.
    let kept = symbol.starts_with('<');
    for (place, letter) in symbol.char_indices() {
        match letter {
            '<' if kept && place == 0 => name.push('<'),
            '<' => depth += 1,
            '>' if depth > 0 && !name.ends_with('-') => depth -= 1,
            ';' => name.push(':'),
            _ if depth == 0 => name.push(letter),
            _ => {}
        }
    }
    name
}

/// One box and what it called.
#[derive(Debug, Default)]
struct Frame {
    samples: u64,
    calls: BTreeMap<String, Frame>,
}

/// The whole file.
#[must_use]
pub fn graph(title: &str, stacks: &Stacks) -> String {
    let mut root = Frame::default();
    for (stack, samples) in stacks {
        root.samples += samples;
        let mut frame = &mut root;
        for name in stack.split(';') {
            frame = frame.calls.entry(name.to_owned()).or_default();
            frame.samples += samples;
        }
    }
    let mut boxes = Vec::new();
    let scale = WIDTH / root.samples.max(1) as f64;
    place(&root, 0, 0.0, scale, &mut boxes);
    let rows = boxes.iter().map(|placed| placed.row + 1).max().unwrap_or(0);
    let height = rows as f64 * ROW + 40.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"6\" y=\"20\" font-size=\"14\">{}: {} samples</text>\n",
        escape(title),
        root.samples
    );
    for placed in boxes {
        let share = 100.0 * placed.samples as f64 / root.samples.max(1) as f64;
        let y = height - (placed.row + 1) as f64 * ROW;
        // About 6.7 units for each letter of this font.
        let letters = ((placed.width - 4.0) / 6.7).max(0.0) as usize;
        let label: String =
            if letters < 3 { String::new() } else { placed.name.chars().take(letters).collect() };
        let _ = writeln!(
            text,
            "<g><title>{} ({} samples, {share:.1} %)</title><rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            escape(placed.name),
            placed.samples,
            placed.x,
            (placed.width - 0.5).max(0.2),
            ROW - 1.0,
            colour(placed.name),
            placed.x + 2.0,
            y + 12.0,
            escape(&label)
        );
    }
    text + "</svg>\n"
}

struct Placed<'a> {
    name: &'a str,
    samples: u64,
    row: usize,
    x: f64,
    width: f64,
}

fn place<'a>(frame: &'a Frame, row: usize, mut x: f64, scale: f64, into: &mut Vec<Placed<'a>>) {
    for (name, called) in &frame.calls {
        let width = called.samples as f64 * scale;
        if width >= NARROWEST {
            into.push(Placed { name, samples: called.samples, row, x, width });
            place(called, row + 1, x, scale, into);
        }
        x += width;
    }
}

/// Whose code it is: the kernel's, cryptography, Weft's, a library's.
fn colour(name: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if has(&["weft_"]) {
        "#7fc8a9"
    } else if has(&["aws_lc", "rustls", "aesni", "gcm"]) {
        "#f2b880"
    } else if has(&["::"]) {
        "#a9c5e8"
    } else {
        "#d9d9d9"
    }
}

/// Where the time itself goes: samples by their innermost frame, most first.
#[must_use]
pub fn hottest(stacks: &Stacks, most: usize) -> Vec<(String, u64)> {
    let mut own = BTreeMap::<&str, u64>::new();
    for (stack, samples) in stacks {
        *own.entry(stack.rsplit(';').next().unwrap_or_default()).or_default() += samples;
    }
    let mut own: Vec<_> = own.into_iter().map(|(name, samples)| (name.to_owned(), samples)).collect();
    own.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    own.truncate(most);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "
        ffffffff81 copy_to_user+0x12
            55aa weft_proxy::forward::copy::h0123456789abcdef
            55ab main

            55aa weft_proxy::forward::copy::h0123456789abcdef
            55ab main
            ffff [unknown]

            55ac <alloc::vec::Vec<u8, A> as core::ops::Drop>::drop
            55ab main
";

    #[test]
    fn samples_of_the_same_stack_are_added_and_names_are_short() {
        let stacks = collapse(SCRIPT);
        let listed: Vec<_> = stacks.iter().map(|(stack, &samples)| (stack.as_str(), samples)).collect();
        assert_eq!(
            listed,
            [
                ("main;<alloc::vec::Vec as core::ops::Drop>::drop", 1),
                ("main;weft_proxy::forward::copy", 1),
                ("main;weft_proxy::forward::copy;copy_to_user", 1),
            ]
        );
    }

    #[test]
    fn a_box_is_as_wide_as_its_share() {
        let text = graph("a", &collapse(SCRIPT));
        assert!(text.contains("<title>main (3 samples, 100.0 %)</title><rect x=\"0.0\""), "{text}");
        assert!(text.contains("weft_proxy::forward::copy (2 samples, 66.7 %)"), "{text}");
        assert!(
            text.contains("&lt;alloc::vec::Vec as core::ops::Drop&gt;::drop (1 samples, 33.3 %)"),
            "{text}"
        );
        assert!(graph("nothing", &Stacks::new()).ends_with("</svg>\n"));
    }

    #[test]
    fn the_hottest_is_the_innermost() {
        let hottest = hottest(&collapse(SCRIPT), 1);
        assert_eq!(hottest, [("<alloc::vec::Vec as core::ops::Drop>::drop".to_owned(), 1)]);
    }
}
