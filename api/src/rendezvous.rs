//! Who of many does something: rendezvous (highest random weight) hashing. Whoever knows the same candidates comes to the same
//! choice, without asking anybody; one that leaves changes only what it did itself. No I/O, no randomness, the same in every version.
//! Source: D. Thaler, C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.

/// The `most` candidates that are responsible for a thing, of highest weight first. Equal candidates count once.
#[must_use]
pub fn choose<'a>(candidates: impl IntoIterator<Item = &'a str>, thing: &str, most: usize) -> Vec<&'a str> {
    let mut weighted: Vec<(u64, &str)> =
        candidates.into_iter().map(|candidate| (weight(candidate, thing), candidate)).collect();
    weighted.sort_unstable_by(|a, b| b.cmp(a));
    weighted.dedup();
    weighted.truncate(most);
    weighted.into_iter().map(|(_, candidate)| candidate).collect()
}

/// FNV-1a over both, spread by the finalizer of SplitMix64.
fn weight(candidate: &str, thing: &str) -> u64 {
    let bytes = candidate.bytes().chain([0]).chain(thing.bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut z = hash;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("shop/front-{i}")).collect()
    }

    fn chosen<'a>(all: &'a [String], thing: &str) -> Vec<&'a str> {
        choose(all.iter().map(String::as_str), thing, 3)
    }

    #[test]
    fn exactly_so_many_are_chosen_in_whatever_order_they_are_named() {
        for n in 0..8 {
            let all = names(n);
            let mut reversed = all.clone();
            reversed.reverse();
            let one = chosen(&all, "10.0.0.1:80");
            assert_eq!(one.len(), n.min(3));
            assert_eq!(one, chosen(&reversed, "10.0.0.1:80"));
        }
        assert_eq!(choose(["a", "a", "b"], "x", 3).len(), 2);
    }

    #[test]
    fn who_leaves_is_replaced_by_one_other_and_nothing_else_moves() {
        let all = names(16);
        for thing in (0..100).map(|i| format!("10.0.0.{i}:80")) {
            let before = chosen(&all, &thing);
            let rest: Vec<String> = all.iter().filter(|name| *name != "shop/front-7").cloned().collect();
            let after = chosen(&rest, &thing);
            let stayed = before.iter().filter(|name| after.contains(name)).count();
            assert_eq!(stayed, before.iter().filter(|name| **name != "shop/front-7").count());
        }
    }

    #[test]
    fn the_work_is_spread() {
        let all = names(16);
        let things: Vec<String> = (0..3200).map(|i| format!("10.0.{}.{}:8080", i / 250, i % 250)).collect();
        for name in &all {
            let own = things.iter().filter(|thing| chosen(&all, thing).contains(&name.as_str())).count();
            // 600 expected, with a standard deviation of 22.
            assert!((480..=720).contains(&own), "{name} has {own}");
        }
    }

    #[test]
    fn the_choice_is_the_same_in_every_version() {
        let names = ["shop/front-0", "shop/front-1", "shop/front-2", "shop/front-3"];
        assert_eq!(choose(names, "10.0.0.1:80", 2), CHOSEN);
    }
    const CHOSEN: [&str; 2] = ["shop/front-1", "shop/front-0"];
}
