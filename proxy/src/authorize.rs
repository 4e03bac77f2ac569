//! Whether a caller may ask the own workload for something: what its AuthorizationPolicies come to. Pure. Policies are made
//! into an index when the snapshot is built; a connection looks up once what its caller, address and port leave of them, and
//! each request looks up the rest, so that what a decision costs hardly depends on how many policies there are.
//! It believes nobody: who calls is what mTLS has proved, and from where is the other end of the connection.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, Method, Uri};
use weft_api::{Identity, Reason, TrustDomain, v1};

use crate::error::Error;
use crate::path;
use crate::route::{HeaderMatch, host};
use crate::token::claims::{ClaimMatch, Claims};
use address::Block;
use bits::Bits;
use index::{Sources, Targets, Wanted};
use segments::PathRule;

pub mod address;
mod bits;
mod index;
pub mod segments;
#[cfg(test)]
mod tests;

/// What becomes of that which a policy fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is let through; what no such policy fits is refused.
    Allow,
    /// It is refused.
    Deny,
    /// It is noted.
    Audit,
}

impl Action {
    /// The word in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// A policy that selects the own workload.
#[derive(Clone, Debug)]
pub struct Policy {
    /// "namespace/name".
    pub name: Arc<str>,
    /// What becomes of that which it fits.
    pub action: Action,
    /// What it would refuse is only noted.
    pub dry_run: bool,
    /// What it allows or denies is an event for auditors.
    pub audit: bool,
    /// Any of them; none: it fits nothing.
    pub rules: Vec<Rule>,
}

/// All three parts of it must fit.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// In logs.
    pub name: Arc<str>,
    /// Any of them; none: everybody.
    pub from: Vec<Source>,
    /// Any of them; none: everything.
    pub to: Vec<Target>,
    /// All of them.
    pub when: Vec<Condition>,
}

/// On a request.
#[derive(Clone, Debug)]
pub enum Condition {
    /// On a header, as the caller writes it.
    Header(HeaderMatch),
    /// On a claim of its token, as the issuer signed it.
    Claim(ClaimMatch),
}

/// Whoever has a token, as far as it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// The whole `iss`.
    pub issuer: Option<String>,
    /// The whole `sub`.
    pub subject: Option<String>,
}

/// Any of each list that is not empty, and of every such list.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// SPIFFE ids, and such that stand for many: "*", "spiffe://domain/ns/a/*", "*/sa/b". An asterisk in the place of the trust
    /// domain lets in nobody of another one; it does deny them, and is noted for them.
    pub identities: Vec<String>,
    /// Of callers.
    pub trust_domains: Vec<String>,
    /// Of callers of the own trust domain.
    pub namespaces: Vec<String>,
    /// Of the other end of the connection.
    pub blocks: Vec<Block>,
    /// Of the request's token.
    pub principals: Vec<Principal>,
}

/// In the same way. All but ports are of HTTP.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Where the application listens.
    pub ports: Vec<u16>,
    /// As the client names it.
    pub hosts: Vec<host::HostMatch>,
    /// Case-sensitive.
    pub methods: Vec<Method>,
    /// In their normalised form.
    pub paths: Vec<PathRule>,
}

impl Target {
    /// Whether it looks at anything but ports.
    fn of_http(&self) -> bool {
        !(self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty())
    }
}

/// A rule, where it is spoken of.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// "namespace/name".
    pub policy: Arc<str>,
    /// Its rule.
    pub rule: Arc<str>,
    /// What the policy does.
    pub action: Action,
    /// What it does is an event for auditors.
    pub audit: bool,
}

/// Why something is refused, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// By this rule.
    Rule(Arc<Named>),
    /// There are policies that allow something, these, and none of them allows it.
    NoneAllows(Arc<str>),
    /// The caller is of this other trust domain, and no policy allows it.
    Abroad(TrustDomain),
    /// Policies look at the path, and servers do not agree what it means.
    Path(&'static str),
}

impl Refusal {
    /// The word for client, log and metrics.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Path(_) => Reason::BadRequest,
            Self::Rule(_) | Self::NoneAllows(_) | Self::Abroad(_) => Reason::PolicyDenied,
        }
    }

    /// With a sentence for the log, which the client does not get.
    #[must_use]
    pub fn error(&self) -> Error {
        Error::new(self.reason(), self.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(by) => {
                write!(f, "refused by rule {} of AuthorizationPolicy {}", by.rule, by.policy)
            }
            Self::NoneAllows(names) => {
                write!(f, "no rule of the policies that allow something fits: {names}")
            }
            Self::Abroad(domain) => {
                write!(
                    f,
                    "the caller is of trust domain {domain}, of which no policy lets anybody in who asks for this"
                )
            }
            Self::Path(what) => {
                write!(f, "the path has {what}, and policies of this workload look at paths")
            }
        }
    }
}

/// What the policies say of a request or an opaque connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It must not pass.
    pub refused: Option<Refusal>,
    /// It would not pass, were the policies in dry run in force.
    pub dry_run: Option<Refusal>,
    /// Rules that want it noted, a few.
    pub audited: Vec<Arc<Named>>,
    /// A rule of a policy for auditors that allowed it.
    pub allowed: Option<Arc<Named>>,
    /// It was refused, and a policy for auditors had a part in that.
    pub refusal_audited: bool,
}

impl Verdict {
    /// Whether auditors want to hear of it.
    #[must_use]
    pub fn is_audited(&self) -> bool {
        self.refusal_audited || self.allowed.is_some() || !self.audited.is_empty()
    }

    /// For the record; nothing where there is nothing to say.
    #[must_use]
    pub fn noted(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// Rules that one request is noted for.
const MAX_AUDITED: usize = 8;

/// The policies of a workload, ready to be asked.
pub struct Authorization {
    /// As the operator said it.
    message: v1::Authorization,
    /// In the order in which they count.
    rules: Vec<(Arc<Named>, Vec<Condition>)>,
    sources: Sources,
    targets: Targets,
    /// The rule of each target.
    rule_of: Vec<u32>,
    /// Targets that look at anything of HTTP, with their rule.
    of_http: Bits,
    /// Those that look at paths.
    of_paths: Bits,
    /// Where the targets of each class end: Deny, Deny in dry run, Allow, Allow in dry run, Audit.
    ends: [usize; 5],
    allowing: Option<Arc<str>>,
    allowing_dry: Option<Arc<str>>,
    /// Whether any of those that allow something is for auditors.
    allowing_audited: bool,
    /// Whether any policy that allows or denies is.
    any_audited: bool,
}

impl PartialEq for Authorization {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorization").field("message", &self.message).finish_non_exhaustive()
    }
}

/// In the order in which they count.
const fn class(policy: &Policy) -> usize {
    match (policy.action, policy.dry_run) {
        (Action::Deny, false) => 0,
        (Action::Deny, true) => 1,
        (Action::Allow, false) => 2,
        (Action::Allow, true) => 3,
        (Action::Audit, _) => 4,
    }
}

impl Authorization {
    /// `own`: the own trust domain, whose namespaces are meant; `message`: what they were read from.
    #[must_use]
    pub fn new(own: &str, policies: &[Policy], message: v1::Authorization) -> Self {
        let (mut rules, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new());
        // Those of policies that allow something begin here, and end there.
        let mut granting = 0..0;
        let mut ends = [0; 5];
        for (this, end) in ends.iter_mut().enumerate() {
            if this == 2 {
                granting = from.len()..from.len();
            }
            // Of several that deny, the first is named: if there is one for auditors, that one.
            let (first, second): (Vec<_>, Vec<_>) =
                policies.iter().filter(|policy| class(policy) == this).partition(|policy| policy.audit);
            for policy in first.into_iter().chain(second) {
                for rule in &policy.rules {
                    let named = Arc::new(Named {
                        policy: Arc::clone(&policy.name),
                        rule: Arc::clone(&rule.name),
                        action: policy.action,
                        audit: policy.audit || policy.action == Action::Audit,
                    });
                    for part in parts(rule) {
                        let number = u32::try_from(rules.len()).unwrap_or(u32::MAX);
                        rules.push((Arc::clone(&named), rule.when.clone()));
                        from.extend(part.from.into_iter().map(|source| (number, source)));
                        to.extend(or_any(&rule.to).map(|target| (number, target, part.principals.clone())));
                    }
                }
            }
            *end = to.len();
            if this == 3 {
                granting.end = from.len();
            }
        }
        let audited = |policy: &&Policy| policy.audit && !policy.dry_run && policy.action != Action::Audit;
        let mut targets = Vec::with_capacity(to.len());
        for (number, target, principals) in &to {
            let when = rules.get(*number as usize).map_or(&[][..], |(_, when)| when);
            targets.push(Wanted { target, when, principals });
        }
        let looks = |w: &Wanted<'_>| w.target.of_http() || !w.when.is_empty() || !w.principals.is_empty();
        Self {
            of_http: Bits::of(targets.iter().map(looks)),
            of_paths: Bits::of(to.iter().map(|(_, target, _)| !target.paths.is_empty())),
            rule_of: to.iter().map(|(number, ..)| *number).collect(),
            sources: Sources::new(own, &from, granting),
            targets: Targets::new(&targets),
            rules,
            ends,
            allowing: allowing(policies, |policy| !policy.dry_run),
            allowing_dry: allowing(policies, |_| true),
            allowing_audited: policies.iter().filter(audited).any(|policy| policy.action == Action::Allow),
            any_audited: policies.iter().any(|policy| audited(&policy)),
            message,
        }
    }

    /// Nobody may ask for anything: for policies that cannot be understood, where none were in force before.
    #[must_use]
    pub fn closed() -> Self {
        let nobody = Policy {
            name: "(policies that this proxy does not understand)".into(),
            action: Action::Allow,
            dry_run: false,
            audit: false,
            rules: Vec::new(),
        };
        Self::new("", &[nobody], v1::Authorization::default())
    }

    /// For callers of another trust domain, where no policy selects the workload: they have to be let in by one.
    #[must_use]
    pub fn of_strangers() -> &'static Arc<Self> {
        // Everybody who asks it is a stranger to it.
        static NONE: LazyLock<Arc<Authorization>> =
            LazyLock::new(|| Arc::new(Authorization::new("", &[], v1::Authorization::default())));
        &NONE
    }

    /// What it was read from.
    #[must_use]
    pub const fn message(&self) -> &v1::Authorization {
        &self.message
    }

    /// What is left of the policies on a connection. `caller`: as proved by mTLS.
    #[must_use]
    pub fn admit(self: &Arc<Self>, caller: Option<&Identity>, client: IpAddr, port: u16) -> Admitted {
        let rules = self.sources.rules(caller, client, self.rules.len());
        let mut targets = self.targets.at(port);
        targets.retain(|target| self.rule_of.get(target).is_some_and(|rule| rules.has(*rule as usize)));
        let paths = |from, to| targets.within(from..to).any(|target| self.of_paths.has(target));
        let [deny, deny_dry, allow, allow_dry, _] = self.ends;
        Admitted {
            paths: paths(0, deny) || paths(deny_dry, allow),
            paths_dry: paths(deny, deny_dry) || paths(allow, allow_dry),
            abroad: caller
                .map(|caller| &caller.trust_domain)
                .filter(|domain| domain.as_str() != self.sources.own())
                .cloned(),
            authorization: Arc::clone(self),
            targets,
        }
    }

    /// Whether the conditions of its rule hold, each judged by `fits`.
    fn holds(&self, target: usize, fits: impl Fn(&Condition) -> bool) -> bool {
        let rule = self.rule_of.get(target).and_then(|rule| self.rules.get(*rule as usize));
        rule.is_some_and(|(_, when)| when.iter().all(fits))
    }

    fn named(&self, target: usize) -> Option<&Arc<Named>> {
        self.rules.get(*self.rule_of.get(target)? as usize).map(|(named, _)| named)
    }

    /// `fitting`: targets that fit as far as the index goes; `deny` and `allow`: whether their rules fit wholly.
    /// `abroad`: the caller is of that other trust domain, so that somebody has to allow it.
    fn judge(
        &self,
        fitting: &Bits,
        abroad: Option<&TrustDomain>,
        deny: impl Fn(usize) -> bool,
        allow: impl Fn(usize) -> bool,
    ) -> Verdict {
        let [end_deny, end_deny_dry, end_allow, end_allow_dry, end] = self.ends;
        let denied = |from, to| {
            let mut fitting = fitting.within(from..to);
            fitting.find(|target| deny(*target)).and_then(|target| self.named(target)).cloned()
        };
        let allowed = |from, to| fitting.within(from..to).any(&allow);
        let mut verdict = Verdict::default();
        if end > end_allow_dry {
            let noted = fitting.within(end_allow_dry..end).filter(|target| deny(*target));
            for named in noted.filter_map(|target| self.named(target)) {
                if verdict.audited.len() == MAX_AUDITED {
                    break;
                }
                if !verdict.audited.contains(named) {
                    verdict.audited.push(Arc::clone(named));
                }
            }
        }
        if let Some(by) = denied(0, end_deny) {
            verdict.refusal_audited = by.audit;
            verdict.refused = Some(Refusal::Rule(by));
            return verdict;
        }
        let is_allowed = allowed(end_deny_dry, end_allow);
        if let Some(names) = self.allowing.as_ref().filter(|_| !is_allowed) {
            verdict.refused = Some(Refusal::NoneAllows(Arc::clone(names)));
            verdict.refusal_audited = self.allowing_audited;
            return verdict;
        }
        if let Some(domain) = abroad.filter(|_| !is_allowed) {
            verdict.refused = Some(Refusal::Abroad(domain.clone()));
            return verdict;
        }
        if self.allowing_audited {
            let mut by = fitting.within(end_deny_dry..end_allow).filter(|target| allow(*target));
            verdict.allowed = by.find_map(|target| self.named(target).filter(|named| named.audit)).cloned();
        }
        if let Some(by) = denied(end_deny, end_deny_dry) {
            verdict.dry_run = Some(Refusal::Rule(by));
        } else if let Some(names) = &self.allowing_dry
            && !is_allowed
            && !allowed(end_allow, end_allow_dry)
        {
            verdict.dry_run = Some(Refusal::NoneAllows(Arc::clone(names)));
        }
        verdict
    }
}

/// A rule, for callers who are known when they connect, or for one entry of `from` that looks at the token of each request.
struct Part {
    from: Vec<Source>,
    principals: Vec<Principal>,
}

/// Together they are the rule: what of an entry of `from` is of the request becomes a condition on what is asked for.
fn parts(rule: &Rule) -> Vec<Part> {
    let (of_token, known): (Vec<&Source>, Vec<&Source>) =
        rule.from.iter().partition(|source| !source.principals.is_empty());
    let known: Vec<Source> = known.into_iter().cloned().collect();
    let mut all = Vec::with_capacity(of_token.len() + 1);
    if of_token.is_empty() || !known.is_empty() {
        all.push(Part { from: or_any(&known).collect(), principals: Vec::new() });
    }
    let part = |source: &Source| {
        let from = Source { principals: Vec::new(), ..source.clone() };
        Part { from: vec![from], principals: source.principals.clone() }
    };
    all.extend(of_token.into_iter().map(part));
    all
}

/// How many entries of sources and targets a rule comes to.
#[must_use]
pub fn weight(rule: &Rule) -> usize {
    let of_token = rule.from.iter().filter(|source| !source.principals.is_empty()).count();
    rule.from.len().max(1) + (of_token + 1) * rule.to.len().max(1)
}

/// The names of those that allow something, a few; `None`: there are none.
fn allowing(policies: &[Policy], which: impl Fn(&Policy) -> bool) -> Option<Arc<str>> {
    const NAMED: usize = 4;
    let all = policies.iter().filter(|policy| policy.action == Action::Allow && which(policy));
    let names: Vec<&str> = all.map(|policy| &*policy.name).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| format!("{named}{more}").into())
}

/// One that fits everything, where none is given.
fn or_any<T: Clone + Default>(given: &[T]) -> impl Iterator<Item = T> + '_ {
    given.iter().cloned().chain(given.is_empty().then(T::default))
}

/// What is left of the policies for a caller at a port. Good as long as the policies are the same.
#[derive(Debug)]
pub struct Admitted {
    authorization: Arc<Authorization>,
    targets: Bits,
    abroad: Option<TrustDomain>,
    paths: bool,
    paths_dry: bool,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// As sent.
    pub method: &'a Method,
    /// As sent.
    pub uri: &'a Uri,
    /// As sent, but for those that only the proxy sets.
    pub headers: &'a HeaderMap,
    /// Of its token, if it bears a good one.
    pub claims: Option<&'a Claims>,
}

/// What is to be done with a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Whether it may pass.
    pub verdict: Verdict,
    /// Where the application might read another path than was judged: the path to send on.
    pub path: Option<String>,
}

impl Admitted {
    /// Whether it was made of these policies.
    #[must_use]
    pub fn is_of(&self, authorization: &Arc<Authorization>) -> bool {
        Arc::ptr_eq(&self.authorization, authorization)
    }

    /// Of an HTTP request.
    #[must_use]
    pub fn request(&self, asked: &Asked<'_>) -> Judged {
        let written = asked.uri.path();
        let clear = if self.paths || self.paths_dry {
            path::clear(written)
        } else {
            // Those that audit look at paths too.
            Ok(path::Clear { path: path::normalised(written), resolved: false })
        };
        let clear = match clear {
            Ok(clear) => clear,
            Err(what) if self.paths => {
                let refusal_audited = self.authorization.any_audited;
                let verdict =
                    Verdict { refused: Some(Refusal::Path(what)), refusal_audited, ..Verdict::default() };
                return Judged { verdict, path: None };
            }
            Err(what) => {
                let mut verdict = self.at(asked, &path::normalised(written));
                if verdict.refused.is_none() {
                    verdict.dry_run = Some(Refusal::Path(what));
                }
                return Judged { verdict, path: None };
            }
        };
        let verdict = self.at(asked, &clear.path);
        let path =
            (self.paths && clear.resolved && verdict.refused.is_none()).then(|| clear.path.into_owned());
        Judged { verdict, path }
    }

    fn at(&self, asked: &Asked<'_>, path: &str) -> Verdict {
        let own = &self.authorization;
        let host = host::of_request(asked.uri, asked.headers);
        own.targets.fitting(&self.targets, asked, host, path, |fitting| {
            // Of a header that is there several times, nobody knows which value the application reads.
            let deny = |target| {
                own.holds(target, |wanted| match wanted {
                    Condition::Header(header) => header.fits(asked.headers),
                    Condition::Claim(claim) => claim.fits(asked.claims),
                })
            };
            let allow = |target| {
                own.holds(target, |wanted| match wanted {
                    Condition::Header(header) => header.fits_each(asked.headers),
                    Condition::Claim(claim) => claim.fits(asked.claims),
                })
            };
            own.judge(fitting, self.abroad.as_ref(), deny, allow)
        })
    }

    /// Of bytes that are not read. What looks at HTTP allows none of them, and denies as if what it looks at were there
    /// (as in Istio: a policy that denies may forbid too much where it cannot see, never too little).
    #[must_use]
    pub fn opaque(&self) -> Verdict {
        let own = &self.authorization;
        own.judge(&self.targets, self.abroad.as_ref(), |_| true, |target| !own.of_http.has(target))
    }
}
