//! Conditions on paths, by whole segments, and a tree of many of them that is walked once. Pure. Paths come in the form that
//! `path.rs` makes of them.

use std::collections::HashMap;

use super::bits::{Bits, Members};
use crate::path;

/// A path, leading segments of one, or a template of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// `None`: any one that is not empty.
    segments: Vec<Option<Box<str>>>,
    /// And whatever comes behind them.
    below: bool,
}

impl PathRule {
    /// The whole path.
    ///
    /// # Errors
    /// Why it could never fit.
    pub fn exact(text: &str) -> Result<Self, &'static str> {
        let segments = split(&whole(text)?).map(|segment| Some(segment.into())).collect();
        Ok(Self { segments, below: false })
    }

    /// Leading whole segments; a slash at the end makes no difference.
    ///
    /// # Errors
    /// Why it could never fit.
    pub fn prefix(text: &str) -> Result<Self, &'static str> {
        let form = whole(text)?;
        let form = form.strip_suffix('/').unwrap_or(&form);
        let segments =
            if form.is_empty() { Vec::new() } else { split(form).map(|s| Some(s.into())).collect() };
        Ok(Self { segments, below: true })
    }

    /// `/users/{id}`: what stands in braces is any one segment that is not empty.
    ///
    /// # Errors
    /// What is wrong.
    pub fn template(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix('/') else { return Err("must begin with '/'") };
        let count = rest.split('/').count();
        let mut segments = Vec::with_capacity(count);
        for (at, segment) in rest.split('/').enumerate() {
            let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            segments.push(match name {
                Some(name) if !name.is_empty() && !name.contains(['{', '}']) => None,
                None if segment.contains(['{', '}']) => {
                    return Err("may have {name} only as a whole segment");
                }
                None if segment.is_empty() && at + 1 == count => Some("".into()),
                None => Some(whole(&format!("/{segment}"))?.trim_start_matches('/').into()),
                Some(_) => return Err("may have {name} only as a whole segment"),
            });
            if segments.last().is_some_and(|last| last.as_deref() == Some("")) && at + 1 < count {
                return Err("has empty segments or dot segments, which no path has when it is compared");
            }
        }
        Ok(Self { segments, below: false })
    }

    /// For tests of the tree: one by one.
    #[cfg(test)]
    pub(super) fn fits(&self, path: &str) -> bool {
        let mut given = split(path);
        let all = self.segments.iter().all(|wanted| {
            given.next().is_some_and(|segment| match wanted {
                Some(wanted) => **wanted == *segment,
                None => !segment.is_empty(),
            })
        });
        all && path.starts_with('/') && (self.below || given.next().is_none())
    }
}

/// In the form in which it is compared.
fn whole(text: &str) -> Result<String, &'static str> {
    if !text.starts_with('/') {
        return Err("must begin with '/'");
    }
    match path::clear(text) {
        Ok(clear) if clear.resolved => {
            Err("has empty segments or dot segments, which no path has when it is compared")
        }
        Ok(clear) => Ok(clear.path.into_owned()),
        Err(_) => Err(
            "has what requests are refused for: an encoded slash, a backslash, a semicolon, or an escape that is none",
        ),
    }
}

fn split(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

/// Rules of many, by their numbers.
#[derive(Debug)]
pub(super) struct Tree {
    root: Node,
    room: usize,
}

#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, Node>,
    any: Option<Box<Node>>,
    here: Members,
    below: Members,
}

impl Tree {
    /// `room`: numbers are below it.
    pub(super) fn new(room: usize) -> Self {
        Self { root: Node::default(), room }
    }

    pub(super) fn insert(&mut self, rule: &PathRule, number: usize) {
        let mut node = &mut self.root;
        for segment in &rule.segments {
            node = match segment {
                Some(literal) => node.literal.entry(literal.clone()).or_default(),
                None => &mut **node.any.get_or_insert_default(),
            };
        }
        let members = if rule.below { &mut node.below } else { &mut node.here };
        members.push(number, self.room);
    }

    /// Puts in the numbers of all that fit.
    pub(super) fn find(&self, path: &str, into: &mut Bits) {
        // "*" and the like fit no rule.
        if let Some(rest) = path.strip_prefix('/') {
            self.root.find(Some(rest), into);
        }
    }
}

impl Node {
    // As deep as the longest rule, not as the path.
    fn find(&self, rest: Option<&str>, into: &mut Bits) {
        self.below.put_into(into);
        let Some(rest) = rest else { return self.here.put_into(into) };
        let (segment, rest) = match rest.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (rest, None),
        };
        if let Some(node) = self.literal.get(segment) {
            node.find(rest, into);
        }
        if let Some(node) = self.any.as_ref().filter(|_| !segment.is_empty()) {
            node.find(rest, into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_fit_by_whole_segments() {
        let (exact, prefix, template) = (PathRule::exact, PathRule::prefix, PathRule::template);
        for (rule, path, fits) in [
            (exact("/a/b"), "/a/b", true),
            (exact("/a/b"), "/a/b/", false),
            (exact("/a/b"), "/A/b", false),
            (exact("/"), "/", true),
            (exact("/"), "/a", false),
            (exact("/caf\u{e9}"), "/caf%C3%A9", true),
            (exact("/%61"), "/a", true),
            (prefix("/a"), "/a", true),
            (prefix("/a/"), "/a", true),
            (prefix("/a"), "/a/b", true),
            (prefix("/a"), "/ab", false),
            (prefix("/"), "/x/y", true),
            (prefix("/"), "*", false),
            (template("/users/{id}"), "/users/7", true),
            (template("/users/{id}"), "/users/", false),
            (template("/users/{id}"), "/users/7/x", false),
            (template("/users/{id}/"), "/users/7/", true),
            (template("/{a}/x%3Ay"), "/q/x:y", true),
        ] {
            let rule = rule.unwrap();
            assert_eq!(rule.fits(path), fits, "{rule:?} {path}");
            let (mut tree, mut found) = (Tree::new(1), Bits::none(1));
            tree.insert(&rule, 0);
            tree.find(path, &mut found);
            assert_eq!(found.has(0), fits, "{rule:?} {path}");
        }
        for bad in ["", "a", "/a/../b", "//a", "/a%2fb", "/a;b", "/%zz"] {
            assert!(exact(bad).is_err() && prefix(bad).is_err() && template(bad).is_err(), "{bad}");
        }
        for bad in ["/a{b}", "/{}", "/{a}b", "/{{a}}", "/{a}//b", "/{a}/./b", "/{a}/.."] {
            assert!(template(bad).is_err(), "{bad}");
        }
    }

    fn rule() -> impl Strategy<Value = PathRule> {
        prop_oneof![
            "(/[ab]{1,2}){0,3}/?".prop_filter_map("none", |text| PathRule::exact(&text).ok()),
            "(/[ab]{1,2}){0,3}/?".prop_filter_map("none", |text| PathRule::prefix(&text).ok()),
            "(/([ab]{1,2}|\\{x\\})){0,3}/?".prop_filter_map("none", |text| PathRule::template(&text).ok()),
        ]
    }

    proptest! {
        #[test]
        fn the_tree_finds_just_the_rules_that_fit(rules in prop::collection::vec(rule(), 0..20), path in "(/[ab]{1,2}){0,4}/?") {
            let (mut tree, mut found) = (Tree::new(rules.len()), Bits::none(rules.len()));
            rules.iter().enumerate().for_each(|(number, rule)| tree.insert(rule, number));
            tree.find(&path, &mut found);
            for (number, rule) in rules.iter().enumerate() {
                prop_assert_eq!(found.has(number), rule.fits(&path), "{:?} {}", rule, &path);
            }
        }
    }
}
