//! Tests of `authorize`: what the index decides is what the definition says, and what it costs.

use std::time::{Duration, Instant};

use http::HeaderValue;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::route::ValueMatch;
use crate::route::host::HostMatch;

const OWN: &str = "cluster.local";
const CALLERS: [&str; 5] = [
    "spiffe://cluster.local/ns/shop/sa/front",
    "spiffe://cluster.local/ns/shop/sa/back",
    "spiffe://cluster.local/ns/bank/sa/front",
    "spiffe://other.example/ns/shop/sa/front",
    "spiffe://cluster.local/ns/shop-evil/sa/front",
];
const PATHS: [&str; 8] = ["/", "/a", "/a/b", "//a/./b", "/%61", "/a/7", "/A", "/a%2fb"];

/// One thing that asks.
#[derive(Clone, Debug)]
struct Call {
    caller: Option<Identity>,
    client: IpAddr,
    port: u16,
    /// Method, host, path, values of `x-user`; `None`: opaque.
    http: Option<(Method, &'static str, &'static str, &'static [&'static str])>,
    /// What the token of a request says.
    token: Option<&'static str>,
}

const TOKENS: [&str; 5] = [
    r#"{"iss":"https://a","sub":"ann","exp":9,"groups":["admin","user"]}"#,
    r#"{"iss":"https://a","sub":"b/ann","exp":9,"groups":"user"}"#,
    r#"{"iss":"https://a/b","sub":"ann","exp":9}"#,
    r#"{"iss":"https://b","exp":9,"groups":[]}"#,
    r#"{"iss":"https://b","sub":"bob","exp":9,"groups":["admin"],"level":3}"#,
];

fn claims(token: Option<&str>) -> Option<Claims> {
    token.map(|payload| Claims::read(payload.as_bytes()).unwrap())
}

/// The definition, word for word: every condition of every rule of every policy.
mod naive {
    use super::*;

    fn any<T>(list: &[T], fits: impl Fn(&T) -> bool) -> bool {
        list.is_empty() || list.iter().any(fits)
    }

    fn is(pattern: &str, id: &str) -> bool {
        match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
            (Some(prefix), _) if prefix.is_empty() || prefix.ends_with('/') => id.starts_with(prefix),
            (_, Some(suffix)) => id.ends_with(suffix),
            _ => id == pattern,
        }
    }

    /// `seen`: the request, and not just the connection; `blind`: what cannot be seen of opaque bytes is taken to fit.
    fn source(source: &Source, call: &Call, seen: bool, blind: bool, granting: bool) -> bool {
        let token = claims(call.token);
        let is = |principal: &Principal| {
            token.as_ref().is_some_and(|claims| {
                principal.issuer.as_ref().is_none_or(|issuer| *issuer == claims.issuer)
                    && principal
                        .subject
                        .as_ref()
                        .is_none_or(|subject| Some(subject) == claims.subject.as_ref())
            })
        };
        let by_token = match call.http {
            _ if !seen => true,
            None => blind || source.principals.is_empty(),
            Some(_) => any(&source.principals, is),
        };
        by_token && connects(source, call, granting)
    }

    /// `granting`: of a policy that allows something, to which other trust domains have to be named.
    fn connects(source: &Source, call: &Call, granting: bool) -> bool {
        let named = |pattern: &str, id: &Identity| {
            id.trust_domain.as_str() == OWN || !granting || !pattern.starts_with('*')
        };
        any(&source.identities, |pattern| {
            call.caller.as_ref().is_some_and(|id| is(pattern, &id.to_string()) && named(pattern, id))
        }) && any(&source.trust_domains, |domain| {
            call.caller.as_ref().is_some_and(|id| id.trust_domain.as_str() == domain)
        }) && any(&source.namespaces, |namespace| {
            let own = call.caller.as_ref().filter(|id| id.trust_domain.as_str() == OWN);
            own.is_some_and(|id| id.namespace == *namespace)
        }) && any(&source.blocks, |block| block.has(call.client))
    }

    /// `blind`: what cannot be seen of opaque bytes is taken to fit.
    fn rule(rule: &Rule, call: &Call, blind: bool) -> bool {
        let target = |target: &Target| {
            any(&target.ports, |port| *port == call.port)
                && match &call.http {
                    None => blind || !target.of_http(),
                    Some((method, host, path, _)) => {
                        any(&target.methods, |m| m == method)
                            && any(&target.hosts, |h| h.fits(host.trim_end_matches(":80")))
                            && any(&target.paths, |p| p.fits(&path::normalised(path)))
                    }
                }
        };
        let when = match &call.http {
            None => blind || rule.when.is_empty(),
            Some((.., users)) => rule.when.iter().all(|m| when_holds(m, users, call.token, blind)),
        };
        any(&rule.from, |s| source(s, call, true, blind, !blind)) && any(&rule.to, target) && when
    }

    /// What is refused by any value is allowed by all of them only.
    fn when_holds(wanted: &Condition, users: &[&str], token: Option<&str>, any: bool) -> bool {
        let wanted = match wanted {
            Condition::Header(wanted) => wanted,
            Condition::Claim(wanted) => return wanted.fits(claims(token).as_ref()),
        };
        match &wanted.value {
            ValueMatch::Present(present) => *present != users.is_empty(),
            ValueMatch::Exact(text) if any => users.iter().any(|user| user == text),
            ValueMatch::Exact(text) => !users.is_empty() && users.iter().all(|user| user == text),
            other => panic!("{other:?} is not among the policies"),
        }
    }

    fn looks_at_paths(policies: &[&Policy], call: &Call) -> bool {
        let could = |(granting, rule): (bool, &Rule)| {
            any(&rule.from, |s| source(s, call, false, true, granting))
                && rule.to.iter().any(|to| !to.paths.is_empty() && any(&to.ports, |p| *p == call.port))
        };
        let looking = policies.iter().filter(|p| p.action != Action::Audit);
        looking.flat_map(|p| p.rules.iter().map(|r| (p.action == Action::Allow, r))).any(could)
    }

    fn abroad(call: &Call) -> bool {
        call.caller.as_ref().is_some_and(|id| id.trust_domain.as_str() != OWN)
    }

    /// Whether these policies refuse.
    pub(super) fn refuses(policies: &[&Policy], call: &Call) -> bool {
        let unclear = call.http.as_ref().is_some_and(|(_, _, path, _)| path::clear(path).is_err());
        let fits = |action: Action, blind: bool| {
            let mut rules = policies.iter().filter(|p| p.action == action).flat_map(|p| &p.rules);
            rules.any(|r| rule(r, call, blind))
        };
        unclear && looks_at_paths(policies, call)
            || fits(Action::Deny, true)
            || (policies.iter().any(|p| p.action == Action::Allow) || abroad(call))
                && !fits(Action::Allow, false)
    }

    pub(super) fn allowed_for_auditors(policies: &[&Policy], call: &Call) -> bool {
        let mut audited = policies.iter().filter(|p| p.action == Action::Allow && p.audit);
        audited.any(|p| p.rules.iter().any(|r| rule(r, call, false)))
    }

    pub(super) fn audits_refusal(policies: &[&Policy], call: &Call, refusal: Option<&Refusal>) -> bool {
        let audited = |action: Action| policies.iter().any(|p| p.action == action && p.audit);
        match refusal {
            None => false,
            Some(Refusal::Path(_)) => audited(Action::Allow) || audited(Action::Deny),
            Some(Refusal::NoneAllows(_)) => audited(Action::Allow),
            Some(Refusal::Abroad(_)) => false,
            Some(Refusal::Rule(_)) => {
                let mut deny = policies.iter().filter(|p| p.action == Action::Deny && p.audit);
                deny.any(|p| p.rules.iter().any(|r| rule(r, call, true)))
            }
        }
    }

    pub(super) fn audits(policies: &[Policy], call: &Call) -> bool {
        let audits = policies.iter().filter(|p| p.action == Action::Audit);
        audits.flat_map(|p| &p.rules).any(|r| rule(r, call, true))
    }
}

fn headers(users: &[&'static str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for user in users {
        headers.append("x-user", HeaderValue::from_static(user));
    }
    headers
}

fn authorization(policies: &[Policy]) -> Arc<Authorization> {
    Arc::new(Authorization::new(OWN, policies, v1::Authorization::default()))
}

fn ask(authorization: &Arc<Authorization>, call: &Call) -> Verdict {
    let admitted = authorization.admit(call.caller.as_ref(), call.client, call.port);
    let Some((method, host, path, users)) = &call.http else { return admitted.opaque() };
    let (uri, mut headers, claims) = (path.parse().unwrap(), headers(users), claims(call.token));
    headers.insert("host", HeaderValue::from_static(host));
    admitted.request(&Asked { method, uri: &uri, headers: &headers, claims: claims.as_ref() }).verdict
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    let most = of.len().min(2);
    prop_oneof![2 => Just(Vec::new()), 3 => subsequence(of, 1..=most)]
}

fn source() -> impl Strategy<Value = Source> {
    let mut patterns = CALLERS.map(str::to_owned).to_vec();
    patterns.extend(
        ["*", "spiffe://cluster.local/ns/shop/*", "*/sa/front", "spiffe://other.example/*"]
            .map(str::to_owned),
    );
    let blocks = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0"].map(|text| text.parse().unwrap()).to_vec();
    let principal = |issuer: Option<&str>, subject: Option<&str>| Principal {
        issuer: issuer.map(str::to_owned),
        subject: subject.map(str::to_owned),
    };
    let principals = vec![
        principal(None, None),
        principal(Some("https://a"), None),
        principal(Some("https://a"), Some("ann")),
        principal(Some("https://a/b"), Some("ann")),
        principal(None, Some("bob")),
    ];
    let principals = prop_oneof![2 => Just(Vec::new()), 1 => subsequence(principals, 1..=2)];
    let domains = some(vec![OWN.to_owned(), "other.example".to_owned()]);
    let namespaces = some(vec!["shop".to_owned(), "bank".to_owned()]);
    (some(patterns), domains, namespaces, some(blocks), principals).prop_map(
        |(identities, trust_domains, namespaces, blocks, principals)| Source {
            identities,
            trust_domains,
            namespaces,
            blocks,
            principals,
        },
    )
}

fn target() -> impl Strategy<Value = Target> {
    let paths = vec![
        PathRule::exact("/a"),
        PathRule::exact("/"),
        PathRule::prefix("/a/b"),
        PathRule::prefix("/"),
        PathRule::template("/a/{id}"),
    ];
    let hosts = ["back", "*.shop", "back.shop"].map(|text| HostMatch::parse(text).unwrap()).to_vec();
    (
        some(vec![80, 90]),
        some(hosts),
        some(vec![Method::GET, Method::POST]),
        some(paths.into_iter().map(Result::unwrap).collect()),
    )
        .prop_map(|(ports, hosts, methods, paths)| Target { ports, hosts, methods, paths })
}

fn rule() -> impl Strategy<Value = Rule> {
    let user =
        |value| Condition::Header(HeaderMatch { name: http::HeaderName::from_static("x-user"), value });
    let claim = |name: &str, value| Condition::Claim(ClaimMatch { claim: vec![name.to_owned()], value });
    let when = vec![
        vec![user(ValueMatch::Exact("ann".into()))],
        vec![user(ValueMatch::Exact("bob".into()))],
        vec![user(ValueMatch::Present(true)), user(ValueMatch::Exact("bob".into()))],
        vec![user(ValueMatch::Exact("ann".into())), user(ValueMatch::Exact("bob".into()))],
        vec![user(ValueMatch::Present(false))],
        vec![claim("groups", ValueMatch::Exact("admin".into()))],
        vec![
            claim("groups", ValueMatch::Exact("user".into())),
            claim("sub", ValueMatch::Exact("ann".into())),
        ],
        vec![claim("level", ValueMatch::Exact("3".into())), user(ValueMatch::Exact("bob".into()))],
        vec![claim("groups", ValueMatch::Present(false))],
        vec![claim("sub", ValueMatch::Prefix("a".into()))],
    ];
    (
        prop::collection::vec(source(), 0..3),
        prop::collection::vec(target(), 0..3),
        prop_oneof![3 => Just(Vec::new()), 1 => select(when)],
    )
        .prop_map(|(from, to, when)| Rule { name: "r".into(), from, to, when })
}

fn policy() -> impl Strategy<Value = Policy> {
    let action = select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Audit]);
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.3));
    (action, flags, prop::collection::vec(rule(), 0..4), 0..99u32).prop_map(
        |(action, (dry_run, audit), rules, n)| Policy {
            name: format!("shop/p{n}").into(),
            action,
            dry_run: dry_run && action != Action::Audit,
            audit,
            rules,
        },
    )
}

fn call() -> impl Strategy<Value = Call> {
    let caller = prop_oneof![
        1 => Just(None),
        4 => select(CALLERS.to_vec()).prop_map(|id| Some(id.parse().unwrap())),
    ];
    let client = select(vec!["10.1.2.3", "10.9.9.9", "::ffff:10.1.7.7", "2001:db8::1"]);
    let http = (
        select(vec![Method::GET, Method::POST]),
        select(vec!["back", "x.shop:80", "BACK.shop", ".shop", "elsewhere"]),
        select(PATHS.to_vec()),
        select(vec![&[][..], &["ann"], &["bob"], &["ann", "bob"]]),
    );
    (
        caller,
        client.prop_map(|a| a.parse().unwrap()),
        select(vec![80u16, 90]),
        prop::option::weighted(0.8, http),
        prop::option::weighted(0.6, select(TOKENS.to_vec())),
    )
        .prop_map(|(caller, client, port, http, token)| Call { caller, client, port, http, token })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_index_decides_as_the_definition_does(policies in prop::collection::vec(policy(), 0..12), calls in prop::collection::vec(call(), 8)) {
        let authorization = authorization(&policies);
        let all: Vec<&Policy> = policies.iter().collect();
        let in_force: Vec<&Policy> = policies.iter().filter(|p| !p.dry_run).collect();
        for call in calls {
            let verdict = ask(&authorization, &call);
            let refused = naive::refuses(&in_force, &call);
            prop_assert_eq!(verdict.refused.is_some(), refused, "{:?} {:?}", &call, &verdict);
            let would = !refused && naive::refuses(&all, &call);
            prop_assert_eq!(verdict.dry_run.is_some(), would, "{:?} {:?}", &call, &verdict);
            let unclear = verdict.refused.as_ref().is_some_and(|r| matches!(r, Refusal::Path(_)));
            let seen = naive::allowed_for_auditors(&in_force, &call);
            prop_assert_eq!(verdict.allowed.is_some(), !refused && seen, "{:?} {:?}", &call, &verdict);
            let part = naive::audits_refusal(&in_force, &call, verdict.refused.as_ref());
            prop_assert_eq!(verdict.refusal_audited, part, "{:?} {:?}", &call, &verdict);
            prop_assert!(unclear || verdict.audited.is_empty() != naive::audits(&policies, &call), "{:?}", &call);
        }
    }

    #[test]
    fn an_asterisk_stands_for_whole_segments(id in select(CALLERS.to_vec())) {
        let mut all = Vec::new();
        spellings_of(id, &mut all);
        for pattern in &all {
            let fits = match pattern.as_str() {
                "*" => true,
                text if text.ends_with('*') => id.starts_with(&text[..text.len() - 1]) && text.ends_with("/*"),
                text if text.starts_with('*') => id.ends_with(&text[1..]) && text.starts_with("*/"),
                text => text == id,
            };
            prop_assert!(fits, "{}", pattern);
        }
        prop_assert!(!all.iter().any(|pattern| pattern == "spiffe://cluster.local/ns/shop*"));
    }
}

fn spellings_of(id: &str, into: &mut Vec<String>) {
    index::spellings(id, |text| into.push(text.to_owned()));
}

fn from(account: &str) -> Source {
    Source { identities: vec![format!("spiffe://cluster.local/ns/shop/sa/{account}")], ..Source::default() }
}

fn one(action: Action, rules: Vec<Rule>) -> Policy {
    Policy { name: "shop/p".into(), action, dry_run: false, audit: false, rules }
}

fn get(path: &'static str) -> Call {
    Call {
        caller: Some(CALLERS[0].parse().unwrap()),
        client: [10, 1, 2, 3].into(),
        port: 80,
        http: Some((Method::GET, "back", path, &[])),
        token: None,
    }
}

#[test]
fn a_refusal_says_by_which_rule_or_which_policies_would_have_allowed() {
    let admin = Target { paths: vec![PathRule::prefix("/admin").unwrap()], ..Target::default() };
    let deny = one(Action::Deny, vec![Rule { name: "admin".into(), to: vec![admin], ..Rule::default() }]);
    let verdict = ask(&authorization(std::slice::from_ref(&deny)), &get("/x/%2e./admin/y"));
    let refused = verdict.refused.unwrap();
    assert_eq!(refused.to_string(), "refused by rule admin of AuthorizationPolicy shop/p");
    assert_eq!(refused.reason(), Reason::PolicyDenied);
    let others: Vec<Policy> =
        (0..6).map(|n| Policy { name: format!("shop/a{n}").into(), ..one(Action::Allow, vec![]) }).collect();
    let verdict = ask(&authorization(&others), &get("/"));
    assert_eq!(
        verdict.refused.unwrap().to_string(),
        "no rule of the policies that allow something fits: shop/a0, shop/a1, shop/a2, shop/a3 and 2 more"
    );
    let unclear = ask(&authorization(&[deny]), &get("/a%2fb")).refused.unwrap();
    assert_eq!(unclear.reason(), Reason::BadRequest);
}

#[test]
fn what_an_application_could_read_as_another_path_is_sent_on_resolved() {
    let everything = Target { paths: vec![PathRule::prefix("/").unwrap()], ..Target::default() };
    let allow = one(Action::Allow, vec![Rule { to: vec![everything], ..Rule::default() }]);
    let looks = authorization(&[allow]);
    let blind = authorization(&[one(Action::Allow, vec![Rule::default()])]);
    for (path, sent) in [("/a/b", None), ("/%61", None), ("/a//b", Some("/a/b")), ("/a/../b", Some("/b"))] {
        let uri = path.parse().unwrap();
        let asked = Asked { method: &Method::GET, uri: &uri, headers: &HeaderMap::new(), claims: None };
        let at = |authorization: &Arc<Authorization>| authorization.admit(None, [10, 0, 0, 1].into(), 80);
        assert_eq!(at(&looks).request(&asked).path.as_deref(), sent, "{path}");
        assert_eq!(at(&blind).request(&asked).path, None, "{path}");
    }
}

#[test]
fn a_caller_without_identity_fits_no_identity_and_no_namespace() {
    let anybody = Source { identities: vec!["*".into()], ..Source::default() };
    let shop = Source { namespaces: vec!["shop".into()], ..Source::default() };
    for source in [anybody, shop, from("front")] {
        let rule = Rule { from: vec![source], ..Rule::default() };
        let allow = authorization(&[one(Action::Allow, vec![rule])]);
        assert!(ask(&allow, &get("/")).refused.is_none());
        assert!(ask(&allow, &Call { caller: None, ..get("/") }).refused.is_some());
        assert!(ask(&allow, &Call { caller: None, http: None, ..get("/") }).refused.is_some());
    }
}

/// Policies as there may be many of: each for a caller and a path of its own.
fn many(count: usize) -> Vec<Policy> {
    (0..count)
        .map(|n| {
            let paths = vec![
                PathRule::prefix(&format!("/api/v1/things-{n}")).unwrap(),
                PathRule::template(&format!("/users/{{id}}/items-{n}")).unwrap(),
            ];
            let to = Target { methods: vec![Method::GET, Method::POST], paths, ..Target::default() };
            let action = if n % 10 == 9 { Action::Deny } else { Action::Allow };
            // All for this caller: nothing of them is left out because of whom it is.
            let source = Source { namespaces: vec!["shop".into()], ..Source::default() };
            let rule =
                Rule { name: "0".into(), from: vec![source, from("front")], to: vec![to], when: vec![] };
            Policy {
                name: format!("shop/p{n}").into(),
                action,
                dry_run: false,
                audit: false,
                rules: vec![rule],
            }
        })
        .collect()
}

/// The fastest of several rounds, for one decision.
fn cost(policies: &[Policy]) -> Duration {
    let authorization = authorization(policies);
    let admitted = authorization.admit(Some(&CALLERS[0].parse().unwrap()), [10, 0, 0, 1].into(), 80);
    let headers = headers(&["ann"]);
    let uris: Vec<Uri> =
        ["/api/v1/things-0/7", "/users/8/items-0", "/nothing/of/it"].map(|p| p.parse().unwrap()).into();
    let round = || {
        const TIMES: u32 = 2_000;
        let begin = Instant::now();
        for n in 0..TIMES {
            let asked = Asked {
                method: &Method::GET,
                uri: &uris[n as usize % uris.len()],
                headers: &headers,
                claims: None,
            };
            std::hint::black_box(admitted.request(std::hint::black_box(&asked)));
        }
        begin.elapsed() / TIMES
    };
    (0..20).map(|_| round()).min().unwrap_or_default()
}

#[test]
fn a_thousand_policies_cost_hardly_more_than_one() {
    let [one, hundred, thousand] = [1, 100, 1_000].map(|count| cost(&many(count)));
    println!("one decision: {one:?} under 1 policy, {hundred:?} under 100, {thousand:?} under 1,000");
    // Of a machine that is busy otherwise not more is asked than that it is nothing like a thousand times.
    assert!(thousand < one * 20 + Duration::from_micros(5), "{one:?} {thousand:?}");
}
