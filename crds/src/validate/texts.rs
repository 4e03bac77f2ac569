//! Texts with a grammar of their own: regular expressions and label keys. It never sees a resource.

use regex::RegexBuilder;

/// Highest size, in bytes, of a compiled regular expression. The proxy compiles with the same bound.
pub const MAX_REGEX_SIZE: usize = 1 << 18;

/// Compiles as the proxy does, for the whole text.
///
/// # Errors
/// A sentence for the user.
pub fn regex(pattern: &str) -> Result<(), String> {
    // Alone first: `a)|(b` would close the group and so escape the anchors.
    let compile = |text: &str| RegexBuilder::new(text).size_limit(MAX_REGEX_SIZE).build();
    match compile(pattern).and_then(|_| compile(&format!("^(?:{pattern})$"))) {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => Err(format!(
            "the regular expression needs more than {MAX_REGEX_SIZE} bytes when compiled: use smaller repetitions, or narrower classes such as [0-9] in place of \\d"
        )),
        // The library's text draws a picture over several lines; its last line says what is wrong.
        Err(error) => {
            let text = error.to_string();
            let cause = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!(
                "the regular expression does not compile ({cause}): use RE2 syntax, without look-around and back-references"
            ))
        }
    }
}

/// Whether every group that a substitution names is one of its expression, which compiles.
///
/// # Errors
/// A sentence for the user.
pub(super) fn substitution(pattern: &str, substitution: &str) -> Result<(), String> {
    let groups =
        RegexBuilder::new(pattern).size_limit(MAX_REGEX_SIZE).build().map_or(1, |r| r.captures_len());
    let mut rest = substitution;
    while let Some((_, after)) = rest.split_once('$') {
        let group = after.chars().next().and_then(|c| c.to_digit(10));
        if let Some(group) = group.filter(|&group| group as usize >= groups) {
            return Err(format!(
                "substitution names group ${group}, and the pattern has only {}: add a group in parentheses to pattern, or name another one",
                groups - 1
            ));
        }
        rest = after.get(1..).unwrap_or_default();
    }
    Ok(())
}

/// Whether a label key is one that Kubernetes takes: an optional DNS prefix, a slash, and a name of 63 characters at most.
pub(super) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let name_fits = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && [name.bytes().next(), name.bytes().next_back()].iter().flatten().all(u8::is_ascii_alphanumeric);
    let prefix_fits = prefix.is_none_or(|prefix| {
        (1..=253).contains(&prefix.len())
            && prefix.split('.').all(|part| {
                !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !part.starts_with('-')
                    && !part.ends_with('-')
            })
    });
    name_fits && prefix_fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn expressions_of_every_day_compile() {
        for good in ["/v[12]/.*", "(?i)mobile", "a|b", r"\d{1,5}", r"[\p{Lu}]+", "^/anchored$"] {
            assert_eq!(regex(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_cannot_compile_is_refused_in_one_line() {
        for bad in ["(", "a{2,1}", "(?=x)", r"\1", "[z-a]", "(?P<n", "x**)"] {
            let sentence = regex(bad).unwrap_err();
            assert!(!sentence.contains('\n') && sentence.contains("RE2"), "{sentence}");
        }
    }

    #[test]
    fn what_would_take_much_memory_is_refused() {
        assert!(regex(r"(\w{1000}){1000}").unwrap_err().contains("smaller"));
    }

    #[test]
    fn a_pattern_cannot_close_the_group_that_anchors_it() {
        for bad in ["a)|(b", ")("] {
            assert!(regex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_keys_are_told_from_other_text() {
        for good in ["app", "app.kubernetes.io/name", "a", "A_b-c.9"] {
            assert!(is_label_key(good), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "-a", "a-", "A.io/x", "a//b", "a b", "a..b/x", &"x".repeat(64)] {
            assert!(!is_label_key(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,64}") {
            let _ = regex(&text);
            let _ = is_label_key(&text);
        }
    }
}
