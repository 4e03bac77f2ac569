//! The conditions of all rules, by what they ask for: a look-up for each respect gives the numbers that fit in it, and what
//! fits in all of them is left. Numbers are those of sources and targets, each of one rule. Pure.

use std::borrow::{Borrow, Cow};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use weft_api::Identity;

use super::address::Block;
use super::bits::{Bits, Members};
use super::segments::Tree;
use super::{Asked, Condition, Principal, Source, Target};
use crate::route::host::HostMatch;
use crate::route::{HeaderMatch, ValueMatch, text_of};
use crate::token::claims::{ClaimMatch, Claims};

/// One respect: who has no condition in it, and who asks for which value.
#[derive(Debug)]
struct Respect<K> {
    free: Bits,
    by: HashMap<K, Members>,
}

impl<K: Eq + Hash> Respect<K> {
    fn new<'a, T: 'a>(of: impl ExactSizeIterator<Item = &'a T>, keys: impl Fn(&'a T) -> Vec<K>) -> Self {
        let room = of.len();
        let (mut free, mut by) = (Bits::none(room), HashMap::<K, Members>::new());
        for (number, one) in of.enumerate() {
            let keys = keys(one);
            if keys.is_empty() {
                free.set(number);
            }
            for key in keys {
                by.entry(key).or_default().push(number, room);
            }
        }
        Self { free, by }
    }

    /// Nobody has a condition.
    fn is_idle(&self) -> bool {
        self.by.is_empty()
    }

    fn add<Q: Eq + Hash + ?Sized>(&self, value: &Q, into: &mut Bits)
    where
        K: Borrow<Q>,
    {
        if let Some(members) = self.by.get(value) {
            members.put_into(into);
        }
    }
}

/// Who calls.
#[derive(Debug)]
pub(super) struct Sources {
    own: Box<str>,
    /// Also those that stand for many, as they are written.
    identities: Respect<String>,
    /// Of policies that allow something.
    granting: Range<usize>,
    trust_domains: Respect<String>,
    namespaces: Respect<String>,
    blocks: Respect<Block>,
    /// The lengths that there are.
    lengths: BTreeSet<u8>,
    rule_of: Vec<u32>,
}

impl Sources {
    pub(super) fn new(own: &str, all: &[(u32, Source)], granting: Range<usize>) -> Self {
        let blocks = all.iter().flat_map(|(_, source)| &source.blocks);
        Self {
            own: own.into(),
            granting,
            trust_domains: Respect::new(all.iter(), |(_, source)| source.trust_domains.clone()),
            identities: Respect::new(all.iter(), |(_, source)| source.identities.clone()),
            namespaces: Respect::new(all.iter(), |(_, source)| source.namespaces.clone()),
            lengths: blocks.map(|block| block.length).collect(),
            blocks: Respect::new(all.iter(), |(_, source)| source.blocks.clone()),
            rule_of: all.iter().map(|(rule, _)| *rule).collect(),
        }
    }

    /// The own trust domain.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// The rules, of so many, of which a source fits.
    pub(super) fn rules(&self, caller: Option<&Identity>, client: IpAddr, count: usize) -> Bits {
        let mut fitting = self.identities.free.clone();
        if let Some(caller) = caller {
            let text = caller.to_string();
            if caller.trust_domain.as_str() == &*self.own {
                spellings(&text, |text| self.identities.add(text, &mut fitting));
            } else {
                let mut any = Bits::none(self.rule_of.len());
                spellings(&text, |text| {
                    self.identities.add(text, if text.starts_with('*') { &mut any } else { &mut fitting });
                });
                any.retain(|source| !self.granting.contains(&source));
                fitting.unite(&any);
            }
        }
        if !self.trust_domains.is_idle() {
            let mut these = self.trust_domains.free.clone();
            if let Some(caller) = caller {
                self.trust_domains.add(caller.trust_domain.as_str(), &mut these);
            }
            fitting.intersect(&these);
        }
        if !self.namespaces.is_idle() {
            let mut these = self.namespaces.free.clone();
            if let Some(caller) = caller.filter(|caller| caller.trust_domain.as_str() == &*self.own) {
                self.namespaces.add(caller.namespace.as_str(), &mut these);
            }
            fitting.intersect(&these);
        }
        if !self.blocks.is_idle() {
            let mut these = self.blocks.free.clone();
            self.lengths
                .iter()
                .for_each(|length| self.blocks.add(&Block::around(client, *length), &mut these));
            fitting.intersect(&these);
        }
        let mut rules = Bits::none(count);
        for source in fitting.within(0..self.rule_of.len()) {
            rules.set(self.rule_of[source] as usize);
        }
        rules
    }
}

/// A text, and everything with an asterisk that stands for it: "*", whole leading segments, whole segments at its end.
pub(super) fn spellings(text: &str, mut each: impl FnMut(&str)) {
    each(text);
    each("*");
    for (at, _) in text.match_indices('/') {
        each(&format!("{}*", &text[..=at]));
        each(&format!("*{}", &text[at..]));
    }
}

/// Of the headers that a rule asks for, the first whose whole value it gives: the others are looked at one by one.
#[derive(Debug)]
struct Values {
    free: Bits,
    by: HashMap<HeaderName, HashMap<String, Members>>,
}

impl Values {
    fn new<'a>(of: impl ExactSizeIterator<Item = &'a [Condition]>) -> Self {
        let room = of.len();
        let (mut free, mut by) = (Bits::none(room), HashMap::<HeaderName, HashMap<String, Members>>::new());
        for (number, when) in of.enumerate() {
            let whole = when.iter().find_map(|wanted| match wanted {
                Condition::Header(HeaderMatch { name, value: ValueMatch::Exact(value) }) => {
                    Some((name, value))
                }
                _ => None,
            });
            match whole {
                Some((name, value)) => {
                    let values = by.entry(name.clone()).or_default();
                    values.entry(value.clone()).or_default().push(number, room);
                }
                None => free.set(number),
            }
        }
        Self { free, by }
    }

    /// Those of which any value fits.
    fn add(&self, headers: &HeaderMap, into: &mut Bits) {
        let mut put = |values: &HashMap<String, Members>, value: &HeaderValue| {
            if let Some(members) = values.get(&*text_of(value)) {
                members.put_into(into);
            }
        };
        if self.by.len() <= headers.keys_len() {
            for (name, values) in &self.by {
                headers.get_all(name).iter().for_each(|value| put(values, value));
            }
        } else {
            for (name, value) in headers {
                self.by.get(name).into_iter().for_each(|values| put(values, value));
            }
        }
    }
}

/// Whose token is asked for.
#[derive(Debug, Default)]
struct Principals {
    free: Bits,
    /// Whoever has one.
    any: Members,
    of_subject: HashMap<String, Members>,
    of_issuer: HashMap<String, Subjects>,
}

/// Of one issuer.
#[derive(Debug, Default)]
struct Subjects {
    any: Members,
    by: HashMap<String, Members>,
}

impl Principals {
    /// `None`: nobody asks.
    fn new<'a>(of: impl ExactSizeIterator<Item = &'a [Principal]>) -> Option<Self> {
        let room = of.len();
        let mut all = Self { free: Bits::none(room), ..Self::default() };
        let mut asked = false;
        for (number, principals) in of.enumerate() {
            if principals.is_empty() {
                all.free.set(number);
            }
            for principal in principals {
                asked = true;
                let members = match (&principal.issuer, &principal.subject) {
                    (None, None) => &mut all.any,
                    (None, Some(subject)) => all.of_subject.entry(subject.clone()).or_default(),
                    (Some(issuer), None) => &mut all.of_issuer.entry(issuer.clone()).or_default().any,
                    (Some(issuer), Some(subject)) => {
                        let subjects = all.of_issuer.entry(issuer.clone()).or_default();
                        subjects.by.entry(subject.clone()).or_default()
                    }
                };
                members.push(number, room);
            }
        }
        asked.then_some(all)
    }

    fn add(&self, claims: &Claims, into: &mut Bits) {
        self.any.put_into(into);
        let issuer = self.of_issuer.get(&claims.issuer);
        if let Some(issuer) = issuer {
            issuer.any.put_into(into);
        }
        let Some(subject) = &claims.subject else { return };
        let exactly = issuer.and_then(|issuer| issuer.by.get(subject));
        for members in self.of_subject.get(subject).into_iter().chain(exactly) {
            members.put_into(into);
        }
    }
}

/// Of the claims that a rule asks for, the first whose whole value it gives: the others are looked at one by one.
#[derive(Debug)]
struct ClaimValues {
    free: Bits,
    by: Vec<(Vec<String>, HashMap<String, Members>)>,
}

impl ClaimValues {
    /// `None`: nobody asks.
    fn new<'a>(of: impl ExactSizeIterator<Item = &'a [Condition]>) -> Option<Self> {
        let room = of.len();
        let mut all = Self { free: Bits::none(room), by: Vec::new() };
        for (number, when) in of.enumerate() {
            let whole = when.iter().find_map(|wanted| match wanted {
                Condition::Claim(ClaimMatch { claim, value: ValueMatch::Exact(value) }) => {
                    Some((claim, value))
                }
                _ => None,
            });
            let Some((claim, value)) = whole else {
                all.free.set(number);
                continue;
            };
            let at = match all.by.iter().position(|(known, _)| known == claim) {
                Some(at) => at,
                None => {
                    all.by.push((claim.clone(), HashMap::new()));
                    all.by.len() - 1
                }
            };
            all.by[at].1.entry(value.clone()).or_default().push(number, room);
        }
        (!all.by.is_empty()).then_some(all)
    }

    fn add(&self, claims: &Claims, into: &mut Bits) {
        for (claim, values) in &self.by {
            claims.texts(claim, |text| {
                if let Some(members) = values.get(text) {
                    members.put_into(into);
                }
            });
        }
    }
}

/// A target with what else its rule asks of a request.
pub(super) struct Wanted<'a> {
    pub(super) target: &'a Target,
    pub(super) when: &'a [Condition],
    pub(super) principals: &'a [Principal],
}

/// What is asked for.
#[derive(Debug)]
pub(super) struct Targets {
    ports: Respect<u16>,
    values: Values,
    principals: Option<Principals>,
    claims: Option<ClaimValues>,
    methods: Respect<Method>,
    /// Names, and with a dot in front what all names below one end with.
    hosts: Respect<String>,
    paths: Tree,
    without_path: Bits,
    any_path: bool,
}

thread_local! {
    /// Work space: what is left, and what fits in one respect.
    static SPACE: RefCell<[Bits; 2]> = RefCell::default();
}

impl Targets {
    pub(super) fn new(all: &[Wanted<'_>]) -> Self {
        let whens = || all.iter().map(|wanted| wanted.when);
        let (values, claims) = (Values::new(whens()), ClaimValues::new(whens()));
        let principals = Principals::new(all.iter().map(|wanted| wanted.principals));
        let all: Vec<&Target> = all.iter().map(|wanted| wanted.target).collect();
        let mut paths = Tree::new(all.len());
        for (number, target) in all.iter().enumerate() {
            target.paths.iter().for_each(|path| paths.insert(path, number));
        }
        let host = |host: &HostMatch| match host {
            HostMatch::Exact(name) | HostMatch::Below(name) => name.clone(),
        };
        Self {
            values,
            principals,
            claims,
            ports: Respect::new(all.iter(), |target| target.ports.clone()),
            methods: Respect::new(all.iter(), |target| target.methods.clone()),
            hosts: Respect::new(all.iter(), |target| target.hosts.iter().map(host).collect()),
            paths,
            without_path: Bits::of(all.iter().map(|target| target.paths.is_empty())),
            any_path: all.iter().any(|target| !target.paths.is_empty()),
        }
    }

    /// Those that take a port.
    pub(super) fn at(&self, port: u16) -> Bits {
        let mut fitting = self.ports.free.clone();
        self.ports.add(&port, &mut fitting);
        fitting
    }

    /// Those of `left` that a request fits, handed to `then`. Without allocation.
    pub(super) fn fitting<T>(
        &self,
        left: &Bits,
        asked: &Asked<'_>,
        host: Option<&str>,
        path: &str,
        then: impl FnOnce(&Bits) -> T,
    ) -> T {
        let narrow = |fitting: &mut Bits, these: &mut Bits| {
            fitting.become_like(left);
            if !self.methods.is_idle() {
                these.become_like(&self.methods.free);
                self.methods.add(asked.method, these);
                fitting.intersect(these);
            }
            if !self.values.by.is_empty() {
                these.become_like(&self.values.free);
                self.values.add(asked.headers, these);
                fitting.intersect(these);
            }
            if let Some(principals) = &self.principals {
                these.become_like(&principals.free);
                if let Some(claims) = asked.claims {
                    principals.add(claims, these);
                }
                fitting.intersect(these);
            }
            if let Some(values) = &self.claims {
                these.become_like(&values.free);
                if let Some(claims) = asked.claims {
                    values.add(claims, these);
                }
                fitting.intersect(these);
            }
            if !self.hosts.is_idle() {
                these.become_like(&self.hosts.free);
                if let Some(host) = host {
                    self.add_hosts(host, these);
                }
                fitting.intersect(these);
            }
            if self.any_path {
                these.become_like(&self.without_path);
                self.paths.find(path, these);
                fitting.intersect(these);
            }
        };
        SPACE.with(|space| match space.try_borrow_mut() {
            Ok(mut space) => {
                let [fitting, these] = &mut *space;
                narrow(fitting, these);
                then(fitting)
            }
            // It is in use further up the stack, which nothing does.
            Err(_) => {
                let (mut fitting, mut these) = (Bits::default(), Bits::default());
                narrow(&mut fitting, &mut these);
                then(&fitting)
            }
        })
    }

    fn add_hosts(&self, host: &str, into: &mut Bits) {
        let host: Cow<'_, str> = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            host.to_ascii_lowercase().into()
        } else {
            host.into()
        };
        // What begins with a dot is the key of the names below, and no name.
        if !host.starts_with('.') {
            self.hosts.add(&*host, into);
        }
        for (at, _) in host.match_indices('.').filter(|(at, _)| *at > 0) {
            self.hosts.add(&host[at..], into);
        }
    }
}
