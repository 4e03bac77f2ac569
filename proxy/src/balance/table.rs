//! Tables for consistent hashing: where a key lives, and where it goes next while that endpoint cannot take it. Built when
//! a snapshot is applied, and read on the request path. Pure.
//!
//! - **Ring**: each endpoint has points on a circle, as many as its weight says, at hashes of its address; a key belongs to the
//!   next point. The number of points does not depend on the other endpoints, so that one more or less moves its own
//!   keys and no others. Source: Karger et al., "Consistent Hashing and Random Trees", 1997; libketama.
//! - **Maglev**: a table of prime size that the endpoints fill in turns, each in an order of its own. Spreads more evenly, and
//!   is read at once; one endpoint less moves its keys and a few others. Source: Eisenbud et al., "Maglev", NSDI 2016, section 3.4.

use std::net::SocketAddr;

use super::hash;

/// Points of an endpoint of weight 100, where the resource says nothing.
pub(crate) const RING_POINTS: u32 = 256;
/// A ring has no more points than this: beyond it, each endpoint has half as many until it fits (8 bytes each).
const MAX_RING: usize = 1 << 20;
/// Prime sizes, as in the paper; the larger one from so many endpoints that a slot would be a hundredth of a share.
const SIZES: [usize; 2] = [65_537, 655_373];
/// Endpoints that a table can tell apart.
pub(crate) const MAX_ENDPOINTS: usize = u16::MAX as usize;

/// How a table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With so many points for weight 100.
    Ring(u32),
    Maglev,
}

/// Addresses with their weights.
pub(crate) type Share = (SocketAddr, u32);

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    kind: Kind,
    shares: Box<[Share]>,
    /// Of a ring: where the points are, in order.
    points: Box<[u64]>,
    /// Which of `shares` owns the point, or the slot.
    owners: Box<[u16]>,
}

impl Table {
    /// Of so many endpoints at most [`MAX_ENDPOINTS`]; those of weight 0 own nothing.
    pub(crate) fn new(kind: Kind, shares: &[Share]) -> Self {
        let (points, owners) = match kind {
            Kind::Ring(points) => ring(points, shares),
            Kind::Maglev => (Box::default(), maglev(shares)),
        };
        Self { kind, shares: shares.into(), points, owners }
    }

    /// It would come out the same.
    pub(crate) fn is_of(&self, kind: Kind, shares: &[Share]) -> bool {
        self.kind == kind && *self.shares == *shares
    }

    /// The endpoints for a key, by their places, the first one first: endlessly, and an endpoint may come again.
    pub(crate) fn places(&self, key: u64) -> impl Iterator<Item = usize> {
        let start = match self.kind {
            Kind::Ring(_) => self.points.partition_point(|&point| point < key),
            #[allow(clippy::cast_possible_truncation)]
            Kind::Maglev => (key % (self.owners.len().max(1) as u64)) as usize,
        };
        let (before, from) = self.owners.split_at(start.min(self.owners.len()));
        from.iter().chain(before).cycle().map(|&owner| usize::from(owner))
    }
}

#[allow(clippy::cast_possible_truncation)]
fn ring(points: u32, shares: &[Share]) -> (Box<[u64]>, Box<[u16]>) {
    let count = |points: u32, weight: u32| match weight {
        0 => 0,
        _ => (u64::from(points) * u64::from(weight)).div_ceil(100) as usize,
    };
    let mut points = points.max(1);
    while points > 1 && shares.iter().map(|(_, weight)| count(points, *weight)).sum::<usize>() > MAX_RING {
        points /= 2;
    }
    let mut all: Vec<(u64, u16)> = Vec::new();
    for (place, (addr, weight)) in shares.iter().enumerate() {
        let of = hash::of_endpoint(*addr);
        all.extend((0..count(points, *weight)).map(|n| (hash::with(of, n as u64), place as u16)));
    }
    // Two at the same point: always in the same order, whichever was named first.
    all.sort_unstable_by_key(|&(point, place)| (point, shares[usize::from(place)].0));
    let (points, owners): (Vec<u64>, Vec<u16>) = all.into_iter().unzip();
    (points.into(), owners.into())
}

/// An endpoint on its way through the table, in an order that its address gives.
struct Walk {
    place: u16,
    slot: usize,
    skip: usize,
    weight: u64,
    credit: u64,
}

const FREE: u16 = u16::MAX;

#[allow(clippy::cast_possible_truncation)]
fn maglev(shares: &[Share]) -> Box<[u16]> {
    let size = if shares.len() * 10 < SIZES[0] { SIZES[0] } else { SIZES[1] };
    let mut walks: Vec<Walk> = shares
        .iter()
        .enumerate()
        .filter(|(_, (_, weight))| *weight > 0)
        .map(|(place, (addr, weight))| {
            let of = hash::of_endpoint(*addr);
            Walk {
                place: place as u16,
                slot: (of % size as u64) as usize,
                skip: (hash::with(of, 1) % (size as u64 - 1)) as usize + 1,
                weight: u64::from(*weight),
                credit: 0,
            }
        })
        .collect();
    // In whatever order they are named, the turns come out the same.
    walks.sort_by_key(|walk| shares[usize::from(walk.place)].0);
    let Some(heaviest) = walks.iter().map(|walk| walk.weight).max() else { return Box::default() };
    let mut table = vec![FREE; size];
    let mut left = size;
    loop {
        for walk in &mut walks {
            // A turn for the heaviest each time, for the others as often as their weight says.
            walk.credit += walk.weight;
            if walk.credit < heaviest {
                continue;
            }
            walk.credit -= heaviest;
            // The size is prime, so the walk meets every slot.
            while table[walk.slot] != FREE {
                walk.slot = (walk.slot + walk.skip) % size;
            }
            table[walk.slot] = walk.place;
            left -= 1;
            if left == 0 {
                return table.into();
            }
        }
    }
}
