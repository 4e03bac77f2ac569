//! What the rotation of the root does next. Pure: from what is so to one step, or to what is being waited for. Each step
//! is one write of the Secret, so that whoever leads next goes on where this one ended.
//!
//! A root signs for two thirds of its life. Then the next one is made and put into the bundle (`Distributing`), signs once
//! every proxy trusts it (`Retiring`), and the old one leaves the bundle once nothing that it signed is good any more
//! (`Stable`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Root;
use super::root::BACKDATE;
use super::roots::{Phase, Roots};

/// A standing lasts at least that long, so that what lies in files and caches has followed.
pub const SETTLE: Duration = Duration::from_secs(10);
/// And that long where pods read the bundle from files: the kubelet looks after a pod's volumes once in 90 s at the latest.
pub const FOLLOW: Duration = Duration::from_secs(150);

/// What is known beside the roots themselves.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Now.
    pub now: SystemTime,
    /// Who makes the next root.
    pub maker: Maker,
    /// Somebody asks for a root of Weft's making.
    pub wanted: bool,
    /// The Secret's own words on its standing are not those of its contents: somebody wrote it by hand.
    pub unmarked: bool,
    /// Of leaves.
    pub leaf_lifetime: Duration,
    /// Who trusts the bundle.
    pub trusted: Trusted,
    /// How long other meshes need to learn of a bundle; zero: there are none.
    pub abroad: Duration,
}

/// Who makes roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Weft.
    Weft,
    /// The user, by hand: what signs is not of Weft's making.
    Hand,
    /// Another authority, in a Secret of its own.
    Other {
        /// It holds a root that is good and not in the bundle.
        fresh: bool,
    },
}

impl Maker {
    /// Who that is. `other`: a Secret of another authority is configured, and holds this root, if any.
    #[must_use]
    pub fn of(roots: &Roots, other: Option<Option<&Root>>, now: SystemTime) -> Self {
        match other {
            Some(given) => Self::Other {
                fresh: given.is_some_and(|root| {
                    at(root.not_before) <= now && now < expiry(root) && !roots.bundle().contains(&root.der)
                }),
            },
            None if roots.signing.is_weft() => Self::Weft,
            None => Self::Hand,
        }
    }
}

/// Who trusts the bundle of the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Every replica of the operator signs by this standing, and bundles and webhooks hold it.
    pub published: bool,
    /// Connected proxies.
    pub connected: u32,
    /// Of those, the ones that acknowledged it.
    pub acknowledged: u32,
    /// Running pods with a proxy, connected or not.
    pub pods: u32,
    /// There are pods that read the bundle from files, by themselves.
    pub readers: bool,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue)]
pub enum Step {
    /// Note when the present standing began.
    Stamp,
    /// Make the next root and put it into the bundle.
    Begin,
    /// Sign with it.
    Switch,
    /// Drop the old ones from the bundle.
    Retire,
    /// All has expired: begin anew.
    Replace,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Do(Step),
    /// Nothing, for this reason.
    Wait(String),
}

/// Decides.
#[must_use]
pub fn next(roots: &Roots, facts: &Facts) -> Next {
    let now = facts.now;
    let wait = Next::Wait;
    if expiry(&roots.signing) <= now {
        return match (&roots.next, facts.maker) {
            (Some(next), _) if expiry(next) > now => Next::Do(Step::Switch),
            (_, Maker::Weft | Maker::Other { fresh: true }) => Next::Do(Step::Replace),
            (_, Maker::Hand) => wait("the root, which is not of Weft's making, has expired: put another one into next.crt and next.key".into()),
            (_, Maker::Other { fresh: false }) => {
                wait("the root has expired, and the Secret of the other authority holds none that is good".into())
            }
        };
    }
    if roots.epoch == 0 || facts.unmarked {
        return Next::Do(Step::Stamp);
    }
    let age = now.duration_since(roots.since()).unwrap_or_default();
    match roots.phase() {
        Phase::Stable => stable(roots, facts),
        Phase::Distributing => {
            // A proxy that was not reached for a whole life of its certificate has none any more.
            let unreached_are_dead = age >= facts.leaf_lifetime;
            let last_moment = expiry(&roots.signing) <= now + facts.leaf_lifetime / 3;
            match unready(facts.trusted, unreached_are_dead) {
                Some(why) if !last_moment => wait(why),
                _ if age < SETTLE => wait("the bundle with the next root is spreading".into()),
                _ if facts.trusted.readers && age < FOLLOW && !last_moment => wait(
                    "the kubelets are given time to bring the bundle with the next root into pods' volumes"
                        .into(),
                ),
                _ if age < facts.abroad && !last_moment => {
                    wait("other meshes, which fetch the bundle, have to learn of the next root".into())
                }
                _ => Next::Do(Step::Switch),
            }
        }
        Phase::Retiring => {
            // Clocks differ by as much as certificates are dated back.
            let over = roots.since() + facts.leaf_lifetime + BACKDATE.min(facts.leaf_lifetime);
            if over <= now {
                Next::Do(Step::Retire)
            } else {
                wait(format!("certificates of the old root are good until {}", date(over)))
            }
        }
    }
}

fn stable(roots: &Roots, facts: &Facts) -> Next {
    let end = date(expiry(&roots.signing));
    let begins = due(&roots.signing);
    match facts.maker {
        Maker::Other { fresh: true } => Next::Do(Step::Begin),
        Maker::Other { fresh: false } => Next::Wait(format!(
            "the root expires on {end}: the next rotation begins when the Secret of the other authority holds another one"
        )),
        Maker::Weft | Maker::Hand if facts.wanted => Next::Do(Step::Begin),
        Maker::Weft if begins <= facts.now => Next::Do(Step::Begin),
        Maker::Weft => Next::Wait(format!("the next rotation begins on {}", date(begins))),
        Maker::Hand => Next::Wait(format!(
            "the root is not of Weft's making and expires on {end}: put the next one into next.crt and next.key before"
        )),
    }
}

/// Why the next root cannot sign yet.
fn unready(trusted: Trusted, unreached_are_dead: bool) -> Option<String> {
    let Trusted { published, connected, acknowledged, pods, readers: _ } = trusted;
    if acknowledged < connected {
        return Some(format!("{acknowledged} of {connected} connected proxies trust the next root"));
    }
    if !published {
        return Some("not every replica, trust bundle and webhook has the next root yet".into());
    }
    (connected < pods && !unreached_are_dead)
        .then(|| format!("{connected} of {pods} proxies are connected; the others are waited for until their certificates end"))
}

/// When a root is to be followed by the next one.
#[must_use]
pub fn due(root: &Root) -> SystemTime {
    let (from, to) = (root.not_before, root.not_after);
    let life = Duration::from_secs(to.saturating_sub(from).max(0).unsigned_abs()).saturating_sub(BACKDATE);
    at(from) + BACKDATE + life * 2 / 3
}

/// When it ends.
#[must_use]
pub fn expiry(root: &Root) -> SystemTime {
    at(root.not_after)
}

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs())
}

/// For people.
#[must_use]
pub fn date(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    chrono::DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| "never".into(), |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn roots(lifetime: Duration) -> Roots {
        Roots::from(Root::generate(&"cluster.local".parse().unwrap(), lifetime).unwrap())
    }

    fn another() -> Root {
        Root::generate(&"cluster.local".parse().unwrap(), HOUR * 900).unwrap()
    }

    fn facts(now: SystemTime) -> Facts {
        let all = Trusted { published: true, connected: 3, acknowledged: 3, pods: 3, readers: false };
        Facts {
            now,
            maker: Maker::Weft,
            wanted: false,
            unmarked: false,
            leaf_lifetime: HOUR,
            trusted: all,
            abroad: Duration::ZERO,
        }
    }

    fn step(roots: &Roots, facts: &Facts) -> Option<Step> {
        match next(roots, facts) {
            Next::Do(step) => Some(step),
            Next::Wait(_) => None,
        }
    }

    #[test]
    fn a_rotation_begins_at_two_thirds_and_ends_by_itself() {
        let begin = SystemTime::now();
        let at = |hours: u32| facts(begin + HOUR * hours);
        let first = roots(HOUR * 90).stamp(begin);
        assert_eq!(step(&first, &at(59)), None);
        assert_eq!(step(&first, &at(61)), Some(Step::Begin));
        let second = first.begin(another(), at(61).now);
        assert_eq!(second.bundle().len(), 2);
        assert_eq!(step(&second, &at(61)), None, "it spreads first");
        assert_eq!(step(&second, &at(62)), Some(Step::Switch));
        let third = second.switch(at(62).now);
        assert_eq!(third.bundle().len(), 2);
        assert_eq!(third.signing.der, second.next.clone().unwrap().der);
        assert_eq!(step(&third, &at(63)), None, "what the old one signed is still good");
        assert_eq!(step(&third, &at(64)), Some(Step::Retire));
        let last = third.retire(at(64).now);
        assert_eq!((last.bundle().len(), last.phase()), (1, Phase::Stable));
    }

    #[test]
    fn nothing_is_signed_with_a_root_that_somebody_does_not_trust() {
        let begin = SystemTime::now();
        let both = roots(HOUR * 90).begin(another(), begin);
        let with = |trusted| Facts { trusted, ..facts(begin + SETTLE * 2) };
        let all = facts(begin).trusted;
        assert_eq!(step(&both, &with(all)), Some(Step::Switch));
        assert_eq!(
            step(&both, &with(Trusted { acknowledged: 2, ..all })),
            None,
            "a proxy has not acknowledged it"
        );
        assert_eq!(
            step(&both, &with(Trusted { published: false, ..all })),
            None,
            "a replica does not know it"
        );
        let unreached = Trusted { pods: 4, ..all };
        assert_eq!(step(&both, &with(unreached)), None, "a proxy is not connected");
        // Other meshes fetch the bundle now and then; not for ever, where the old root is about to end.
        let abroad = |at| Facts { abroad: SETTLE * 3, ..facts(at) };
        assert!(
            matches!(next(&both, &abroad(begin + SETTLE * 2)), Next::Wait(why) if why.contains("other meshes"))
        );
        assert_eq!(next(&both, &abroad(begin + SETTLE * 3)), Next::Do(Step::Switch));
        let later = Facts { trusted: unreached, ..facts(begin + HOUR) };
        assert_eq!(step(&both, &later), Some(Step::Switch), "its certificate has ended");
        let stubborn = Facts { trusted: Trusted { acknowledged: 2, ..all }, ..facts(begin + HOUR * 2) };
        assert_eq!(step(&both, &stubborn), None, "a connected one is waited for");
        let last_moment =
            Facts { trusted: Trusted { acknowledged: 2, ..all }, ..facts(begin + HOUR * 90 - HOUR / 4) };
        assert_eq!(step(&both, &last_moment), Some(Step::Switch), "or all of them would lose");
        let files = |age| Facts { trusted: Trusted { readers: true, ..all }, ..facts(begin + age) };
        assert_eq!(step(&both, &files(SETTLE * 2)), None, "volumes follow later than streams");
        assert_eq!(step(&both, &files(FOLLOW)), Some(Step::Switch));
    }

    #[test]
    fn after_all_has_expired_it_begins_anew_with_what_there_is() {
        let begin = SystemTime::now();
        let one = roots(HOUR).stamp(begin);
        assert_eq!(step(&one, &facts(begin + HOUR * 2)), Some(Step::Replace));
        let both = one.begin(another(), begin);
        assert_eq!(step(&both, &facts(begin + HOUR * 2)), Some(Step::Switch));
        let made_by = |maker| Facts { maker, ..facts(begin + HOUR * 2) };
        assert_eq!(step(&one, &made_by(Maker::Hand)), None, "a root of the user's is never replaced unasked");
        assert_eq!(step(&one, &made_by(Maker::Other { fresh: false })), None, "nor another authority's");
        assert_eq!(step(&one, &made_by(Maker::Other { fresh: true })), Some(Step::Replace), "but by its own");
    }

    #[test]
    fn a_root_of_the_users_is_rotated_only_to_one_that_the_user_gives() {
        let begin = SystemTime::now();
        let foreign = |hours: u32| Facts { maker: Maker::Hand, ..facts(begin + HOUR * hours) };
        let one = roots(HOUR * 90).stamp(begin);
        assert_eq!(step(&one, &foreign(80)), None);
        // Somebody puts next.crt and next.key into the Secret.
        let given = Roots { next: Some(roots(HOUR * 90).signing), ..one };
        assert_eq!(step(&given, &Facts { unmarked: true, ..foreign(80) }), Some(Step::Stamp));
        let given = given.stamp(begin + HOUR * 80);
        assert_eq!(step(&given, &foreign(81)), Some(Step::Switch));
        let back = Facts { wanted: true, ..foreign(85) };
        assert_eq!(
            step(&given.switch(begin).retire(begin), &back),
            Some(Step::Begin),
            "or to Weft's, when asked"
        );
    }

    #[test]
    fn another_authority_is_followed_whenever_it_has_another_root() {
        let begin = SystemTime::now();
        let one = roots(HOUR * 90).stamp(begin);
        let given = another();
        let maker = |roots: &Roots, hours: u32| Maker::of(roots, Some(Some(&given)), begin + HOUR * hours);
        let facts =
            |roots: &Roots, hours| Facts { maker: maker(roots, hours), ..facts(begin + HOUR * hours) };
        assert_eq!(step(&one, &facts(&one, 1)), Some(Step::Begin), "long before the present one is due");
        let both = one.begin(Root::from_pem(&given.chain_pem, &given.key_pem).unwrap(), begin + HOUR);
        assert_eq!(step(&both, &facts(&both, 2)), Some(Step::Switch));
        let switched = both.switch(begin + HOUR * 2);
        assert_eq!(maker(&switched, 3), Maker::Other { fresh: false });
        let done = switched.retire(begin + HOUR * 4);
        assert_eq!(step(&done, &facts(&done, 700)), None, "only the other authority knows when it is due");
        assert_eq!(step(&done, &Facts { wanted: true, ..facts(&done, 5) }), None);
        assert_eq!(maker(&one, 901), Maker::Other { fresh: false }, "an expired one is of no use");
        assert_eq!(
            Maker::of(&one, Some(None), begin),
            Maker::Other { fresh: false },
            "the Secret is not there"
        );
        assert_eq!(Maker::of(&one, None, begin), Maker::Weft);
    }

    #[test]
    fn on_demand_only_when_nothing_else_goes_on() {
        let begin = SystemTime::now();
        let wanted = |at: SystemTime| Facts { wanted: true, ..facts(at) };
        let one = roots(HOUR * 90).stamp(begin);
        assert_eq!(step(&one, &wanted(begin)), Some(Step::Begin));
        let retiring = one.begin(another(), begin).switch(begin);
        assert_eq!(step(&retiring, &wanted(begin + SETTLE)), None);
    }

    proptest! {
        /// However the facts fall, a root signs only after it was in the bundle, and leaves the bundle only after it has
        /// stopped signing for the life of a leaf.
        #[test]
        fn every_walk_is_safe(turns in proptest::collection::vec((0u32..40, 0u32..4, any::<bool>(), any::<bool>()), 1..60)) {
            let mut now = SystemTime::now();
            let mut state = Roots::from(another());
            let mut stopped: Vec<(Vec<u8>, SystemTime)> = Vec::new();
            for (minutes, acknowledged, published, wanted) in turns {
                now += Duration::from_secs(u64::from(minutes) * 60);
                let trusted = Trusted { published, connected: 3, acknowledged: acknowledged.min(3), pods: 3, readers: wanted };
                let facts = Facts { wanted, trusted, ..facts(now) };
                let before = state.clone();
                let Next::Do(step) = next(&state, &facts) else { continue };
                state = match step {
                    Step::Stamp => state.stamp(now),
                    Step::Begin => state.begin(another(), now),
                    Step::Switch => state.switch(now),
                    Step::Retire => state.retire(now),
                    Step::Replace => unreachable!("nothing expires here"),
                };
                prop_assert!(state.epoch > before.epoch);
                if state.signing.der != before.signing.der {
                    prop_assert!(before.bundle().contains(&state.signing.der));
                    prop_assert!(acknowledged >= 3 && published);
                    stopped.push((before.signing.der.to_vec(), now));
                }
                for gone in before.bundle().iter().filter(|der| !state.bundle().contains(der)) {
                    let at = stopped.iter().rev().find(|(der, _)| der[..] == gone[..]).map(|(_, at)| *at);
                    prop_assert!(at.is_some_and(|at| at + HOUR <= now));
                }
            }
        }
    }
}
