//! The choice itself: the quick way, which looks at a few endpoints and allocates nothing, and the thorough way, which looks at
//! all of them when those few could not be used. It counts nothing and connects nowhere.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use rand::Rng;
use tokio::time::Instant;

use super::tiers::{Drawn, Tier};
use super::{hash, weights};
use crate::outlier::{Admission, Pass};
use crate::snapshot::{Balancer, Cluster, Endpoint};

/// How often the quick way draws again until it gives up.
const DRAWS: usize = 8;
/// How many places of a table it looks at. With half of the endpoints out, 64 of them in a row are met once in 10¹⁹ requests.
const PLACES: usize = 64;

pub(super) struct Choice<'a> {
    cluster: &'a Cluster,
    /// Only where the balancer hashes.
    key: Option<u64>,
    tried: &'a [SocketAddr],
    now: Instant,
    drawn: Drawn,
}

impl<'a> Choice<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        key: Option<u64>,
        tried: &'a [SocketAddr],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Self {
        let key = key.filter(|_| matches!(cluster.balancer, Balancer::RingHash | Balancer::Maglev));
        let mut choice = Self { cluster, key, tried, now, drawn: Drawn { tier: 0, panic: false } };
        choice.drawn = cluster.plan.draw(
            || key.map_or_else(|| rng.random(), |key| hash::unit(hash::with(key, 2))),
            now,
            |i| cluster.endpoints.get(i).is_some_and(|e| choice.health(e) == Admission::In),
            |i| choice.weight(i),
        );
        choice
    }

    /// Looks at a few endpoints of the drawn tier, which is right as long as one of them is in group 1. Gives up otherwise;
    /// what it chooses is distributed as if it had drawn again until it met such ones.
    pub(super) fn quick(&self, rng: &mut impl Rng) -> Option<(usize, Pass)> {
        let tier = self.cluster.plan.tier(self.drawn.tier)?;
        if !tier.line.any() {
            return None;
        }
        if let Some(key) = self.key {
            return self.by_key(tier, key);
        }
        match self.cluster.balancer {
            Balancer::Random | Balancer::RingHash | Balancer::Maglev => self
                .redraw(tier, rng, |rng| Some(tier.line.sample(rng)))
                .map(|(_, index, pass)| (index, pass)),
            Balancer::RoundRobin => {
                let turn = self.cluster.live.turn(self.drawn.tier);
                let ticket = |_: &mut _| Some(tier.line.ticket(turn.fetch_add(1, Ordering::Relaxed)));
                self.redraw(tier, rng, ticket).map(|(_, index, pass)| (index, pass))
            }
            Balancer::LeastRequest | Balancer::PeakEwma => {
                let (place, first, pass) = self.redraw(tier, rng, |rng| Some(tier.line.sample(rng)))?;
                if matches!(pass, Pass::Probe(_)) {
                    return Some((first, pass));
                }
                match self.redraw(tier, rng, |rng| tier.line.sample_other(place, rng)) {
                    Some((_, probe, pass @ Pass::Probe(_))) => Some((probe, pass)),
                    Some((_, second, other)) if self.better(first, second) == second => Some((second, other)),
                    _ => Some((first, pass)),
                }
            }
        }
    }

    /// Draws until one can be used: it is in, was not tried, and has grown as much as this draw asks for. If that is all
    /// that is missing, the first such one.
    fn redraw<R: Rng>(
        &self,
        tier: &Tier,
        rng: &mut R,
        mut draw: impl FnMut(&mut R) -> Option<usize>,
    ) -> Option<(usize, usize, Pass)> {
        let mut young = None;
        for _ in 0..DRAWS {
            let place = draw(rng)?;
            let index = tier.at(place);
            let Some((index, pass)) = self.admit(index) else { continue };
            if matches!(pass, Pass::Probe(_)) || self.is_grown(index, || rng.random()) {
                return Some((place, index, pass));
            }
            young.get_or_insert((place, index, pass));
        }
        young
    }

    /// The first one for the key that can be used. While an endpoint grows, it has the keys whose own part of the way it has
    /// come; the others stay at the next one until then.
    fn by_key(&self, tier: &Tier, key: u64) -> Option<(usize, Pass)> {
        let mut young = None;
        for place in tier.table.as_ref()?.places(key).take(PLACES) {
            let Some((index, pass)) = self.admit(tier.at(place)) else { continue };
            let part = || hash::unit(hash::with(key, self.hash_of(index)));
            if matches!(pass, Pass::Probe(_)) || self.is_grown(index, part) {
                return Some((index, pass));
            }
            young.get_or_insert((index, pass));
        }
        young
    }

    fn is_grown(&self, index: usize, part: impl FnOnce() -> f32) -> bool {
        let Some(slow) = &self.cluster.slow_start else { return true };
        let since = self.cluster.endpoints.get(index).and_then(|endpoint| endpoint.live.since);
        let share = slow.share(since, self.now);
        share >= 1.0 || part() < share
    }

    fn admit(&self, index: usize) -> Option<(usize, Pass)> {
        let endpoint = self.cluster.endpoints.get(index)?;
        if self.tried.contains(&endpoint.addr) {
            return None;
        }
        match self.health(endpoint) {
            Admission::In => Some((index, Pass::Normal)),
            Admission::Due if self.tried.is_empty() => Some((index, endpoint.live.health.probe(self.now)?)),
            Admission::Due | Admission::Out if self.drawn.panic => Some((index, endpoint.live.health.pass())),
            Admission::Due | Admission::Out => None,
        }
    }

    fn health(&self, endpoint: &Endpoint) -> Admission {
        self.cluster.admission(endpoint, self.now)
    }

    /// Looks at all of them, group by group; within a group at the drawn tier first, then at the others in their order.
    pub(super) fn thorough(&self, rng: &mut impl Rng) -> Option<(usize, Pass)> {
        let mut groups: [Vec<usize>; 6] = Default::default();
        for (index, endpoint) in self.cluster.endpoints.iter().enumerate() {
            if self.cluster.plan.tier_of(index).is_none() {
                continue;
            }
            let tried = self.tried.contains(&endpoint.addr);
            let health = match self.health(endpoint) {
                Admission::Out if self.drawn.panic => Admission::In,
                health => health,
            };
            let group = match health {
                Admission::In if !tried && endpoint.weight > 0 => 0,
                Admission::In if !tried => 1,
                Admission::Due if !tried => 2,
                Admission::In => 3,
                _ if !tried => 4,
                _ => 5,
            };
            groups[group].push(index);
        }
        for group in &mut groups {
            self.nearest(group);
        }
        let [fresh, spare, due, again, out_fresh, out] = groups;
        let probe = |due: &[usize]| {
            due.iter().find_map(|&i| Some((i, self.cluster.endpoints.get(i)?.live.health.probe(self.now)?)))
        };
        // A first try looks after what is due, as it would have in the quick way.
        let own = |index: &usize| self.cluster.plan.tier_of(*index) == Some(self.drawn.tier);
        if self.tried.is_empty()
            && due.first().is_some_and(own)
            && let Some(probe) = probe(&due)
        {
            return Some(probe);
        }
        let chosen = |index: usize| Some((index, self.cluster.endpoints.get(index)?.live.health.pass()));
        if let Some(index) = self.among(&fresh, rng).or_else(|| self.among(&spare, rng)) {
            return chosen(index);
        }
        if let Some(probe) = probe(&due) {
            return Some(probe);
        }
        // What is due but being probed by another is out all the same.
        let index = [&again, &due, &out_fresh, &out].into_iter().find_map(|group| self.among(group, rng))?;
        chosen(index)
    }

    /// Leaves those of the drawn tier, or of the best one that is there.
    fn nearest(&self, group: &mut Vec<usize>) {
        let plan = &self.cluster.plan;
        if plan.is_one() {
            return;
        }
        let order = |index: &usize| {
            let tier = plan.tier_of(*index);
            (tier != Some(self.drawn.tier), tier)
        };
        if let Some(best) = group.iter().map(order).min() {
            group.retain(|index| order(index) == best);
        }
    }

    /// The balancer's choice among some.
    fn among(&self, some: &[usize], rng: &mut impl Rng) -> Option<usize> {
        if let Some(key) = self.key {
            return self.highest(some, key);
        }
        let weights: Vec<u32> = some.iter().map(|&i| self.grown_weight(i)).collect();
        let line = weights::Weights::new(&weights);
        let live = &self.cluster.live;
        let at = |place: usize| some.get(place).copied();
        if !line.any() {
            // All of weight 0: alike.
            return if some.is_empty() { None } else { at(rng.random_range(0..some.len())) };
        }
        match self.cluster.balancer {
            Balancer::Random | Balancer::RingHash | Balancer::Maglev => at(line.sample(rng)),
            Balancer::RoundRobin => at(line.ticket(live.turn_of_rest.fetch_add(1, Ordering::Relaxed))),
            Balancer::LeastRequest | Balancer::PeakEwma => {
                let first = line.sample(rng);
                match line.sample_other(first, rng) {
                    Some(second) => Some(self.better(at(first)?, at(second)?)),
                    None => at(first),
                }
            }
        }
    }

    /// The one with the highest score for the key: each gets its share by weight, and one less moves only its own keys.
    /// Source: Thaler and Ravishankar, "rendezvous hashing", 1998, with the weights of Schindelhauer and Schomaker, 2005.
    fn highest(&self, some: &[usize], key: u64) -> Option<usize> {
        let score = |index: usize| {
            let part = hash::unit(hash::with(key, self.hash_of(index))).max(f32::MIN_POSITIVE);
            #[allow(clippy::cast_precision_loss)]
            let weight = self.weight(index).max(1) as f32;
            -weight / part.ln()
        };
        some.iter().copied().max_by(|&a, &b| score(a).total_cmp(&score(b)))
    }

    fn hash_of(&self, index: usize) -> u64 {
        self.cluster.endpoints.get(index).map_or(0, |endpoint| hash::of_endpoint(endpoint.addr))
    }

    fn weight(&self, index: usize) -> u32 {
        self.cluster.endpoints.get(index).map_or(0, |endpoint| endpoint.weight)
    }

    /// The weight as far as slow start lets it count.
    fn grown_weight(&self, index: usize) -> u32 {
        let Some(endpoint) = self.cluster.endpoints.get(index) else { return 0 };
        match &self.cluster.slow_start {
            Some(slow) if endpoint.weight > 0 => {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_precision_loss,
                    clippy::cast_sign_loss
                )]
                let grown = (endpoint.weight as f32 * slow.share(endpoint.live.since, self.now)) as u32;
                grown.max(1)
            }
            _ => endpoint.weight,
        }
    }

    /// The less loaded of two, both drawn by weight; the first one when they are as good as equal, so that idle endpoints
    /// share by weight.
    fn better(&self, first: usize, second: usize) -> usize {
        let (Some(a), Some(b)) = (self.cluster.endpoints.get(first), self.cluster.endpoints.get(second))
        else {
            return first;
        };
        let (tries_a, tries_b) = (a.live.strain.tries(self.now), b.live.strain.tries(self.now));
        let keep_first = if self.cluster.balancer == Balancer::PeakEwma {
            let (of_a, of_b) = (a.live.latency.millis(self.now), b.live.latency.millis(self.now));
            // What was never measured is taken to be as fast as the other: only requests in flight count then.
            let (of_a, of_b) = (of_a.or(of_b).unwrap_or(0.0), of_b.or(of_a).unwrap_or(0.0));
            // Who refuses is not measured meanwhile, and taken to be no faster than the other.
            let of_a = if tries_a > 1.0 { of_a.max(of_b) } else { of_a };
            let of_b = if tries_b > 1.0 { of_b.max(of_a) } else { of_b };
            cost(of_a, a) * tries_a <= cost(of_b, b) * tries_b * NOISE
        } else {
            busy(a, tries_a) <= busy(b, tries_b)
        };
        if keep_first { first } else { second }
    }
}

/// Differences of latency below this (added to all) and costs within this factor are noise: no reason to prefer one.
const NOISE_MS: f32 = 1.0;
const NOISE: f32 = 1.25;

/// Expected wait: latency times the requests that are there, this one included. More weight carries more requests at the
/// same cost. Source: Finagle's and tower's PeakEwma, `cost = ewma × (pending + 1)`.
fn cost(latency_ms: f32, endpoint: &Endpoint) -> f32 {
    (latency_ms + NOISE_MS) * (busy(endpoint, 1.0) + 1.0)
}

/// Requests in flight, relative to the usual weight of 100. An endpoint that refuses counts as having those that it would have
/// if it had not.
#[allow(clippy::cast_precision_loss)]
fn busy(endpoint: &Endpoint, tries: f32) -> f32 {
    (endpoint.live.in_flight() as f32 + (tries - 1.0)) * 100.0 / endpoint.weight.max(1) as f32
}
