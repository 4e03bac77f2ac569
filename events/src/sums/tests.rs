//! Tests of `sums`: time is what they say.

use proptest::prelude::*;

use super::*;
use crate::Regarding;

const SECOND: Duration = Duration::from_secs(1);

fn note(namespace: &str, text: &str) -> Note {
    let regarding = Regarding { api_version: "v1", namespace: namespace.into(), ..Regarding::default() };
    Note { regarding, warning: false, reason: "R", action: "A", text: text.into() }
}

/// Writes all that is due, and says how often what was told so far.
fn settle(sums: &mut Sums, now: Instant) -> Vec<(bool, u64)> {
    let due = sums.due(now);
    due.iter()
        .map(|write| {
            sums.written(write, "e".into(), now);
            (write.event.is_none(), write.count)
        })
        .collect()
}

#[test]
fn what_goes_on_is_one_event_that_counts_and_after_a_long_silence_another() {
    let (mut sums, now, at) = (Sums::default(), Instant::now(), SystemTime::now());
    let hear = |sums: &mut Sums, times, now| assert_eq!(sums.hear(note("a", "x"), times, at, now), 0);
    hear(&mut sums, 1, now);
    assert_eq!(settle(&mut sums, now), [(true, 1)], "the first is written at once");
    hear(&mut sums, 11, now + SECOND);
    assert_eq!(settle(&mut sums, now + SECOND), []);
    assert_eq!(settle(&mut sums, now + WINDOW), [(false, 12)]);
    assert_eq!(settle(&mut sums, now + WINDOW * 2), [], "nothing more was told");
    let later = now + SECOND + IDLE;
    assert_eq!(settle(&mut sums, later), []);
    hear(&mut sums, 3, later);
    assert_eq!(settle(&mut sums, later), [(true, 3)]);
}

#[test]
fn no_namespace_uses_up_what_there_is_for_others_and_all_have_a_bound() {
    let (mut sums, now, at) = (Sums::default(), Instant::now(), SystemTime::now());
    let mut new = |namespace: &str, round: &str, now| {
        let all = (0..500).map(|n| note(namespace, &format!("{round} {n}")));
        all.filter(|note| sums.hear(note.clone(), 1, at, now) == 0).count()
    };
    assert_eq!(new("loud", "1", now), OF_A_NAMESPACE.0 as usize);
    assert_eq!(new("other", "1", now), (OF_ALL.0 - OF_A_NAMESPACE.0) as usize);
    assert_eq!(new("third", "1", now), 0);
    let minute = now + SECOND * 60;
    assert_eq!((new("loud", "2", minute), new("third", "2", minute)), (15, 15));
}

#[test]
fn few_are_written_again_at_one_look_and_each_has_its_turn() {
    let (mut sums, now, at) = (Sums::default(), Instant::now(), SystemTime::now());
    let all: Vec<Note> = (0..10).map(|n| note("a", &n.to_string())).collect();
    let hear = |sums: &mut Sums| all.iter().for_each(|n| assert_eq!(sums.hear(n.clone(), 1, at, now), 0));
    hear(&mut sums);
    assert_eq!(settle(&mut sums, now).len(), 10);
    hear(&mut sums);
    let looks: Vec<usize> = (0..6).map(|n| settle(&mut sums, now + WINDOW + SECOND * n).len()).collect();
    assert_eq!(looks, [2, 2, 2, 2, 2, 0]);
}

#[test]
fn what_could_not_be_written_is_dropped_and_begun_anew() {
    let (mut sums, now, at) = (Sums::default(), Instant::now(), SystemTime::now());
    assert_eq!(sums.hear(note("a", "x"), 7, at, now), 0);
    let due = sums.due(now).remove(0);
    assert_eq!((due.count, sums.failed(&due)), (7, 7));
    assert!(sums.due(now).is_empty());
    assert_eq!(sums.hear(note("a", "x"), 1, at, now), 0);
    assert_eq!(settle(&mut sums, now), [(true, 1)]);
}

proptest! {
    #[test]
    fn each_thing_is_written_or_dropped_once_and_never_more_events_than_the_bucket_holds(
        steps in prop::collection::vec((0_u8..4, 0_u16..200, 1_u64..5, 0_u64..3000, any::<bool>()), 1..400),
    ) {
        let (mut sums, begin, at) = (Sums::default(), Instant::now(), SystemTime::now());
        let (mut now, mut told, mut written, mut dropped, mut new) = (begin, 0, 0, 0, 0);
        for (namespace, text, times, pause, fails) in steps {
            told += times;
            dropped += sums.hear(note(&namespace.to_string(), &text.to_string()), times, at, now);
            now += Duration::from_millis(pause);
            for write in sums.due(now) {
                new += u32::from(write.event.is_none());
                if fails {
                    dropped += sums.failed(&write);
                } else {
                    sums.written(&write, "e".into(), now);
                    written += write.more;
                }
            }
            let refilled = (now - begin).as_secs_f64() / OF_ALL.1.as_secs_f64();
            prop_assert!(f64::from(new) <= f64::from(OF_ALL.0) + refilled);
            prop_assert!(sums.series.len() <= MOST && sums.namespaces.len() <= MOST);
        }
        let waiting: u64 = sums.series.values().map(|series| series.waiting).sum();
        prop_assert_eq!(written + dropped + waiting, told);
    }
}
