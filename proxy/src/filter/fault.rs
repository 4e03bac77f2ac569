//! Failures that a rule makes up, drawn for each request. Pure: it neither waits nor answers.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rand::Rng;

/// Longest delay.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// Of one rule.
#[derive(Debug)]
pub struct Fault {
    /// How long, and of how many of 100 requests.
    pub delay: Option<(Duration, u32)>,
    /// With what, and of how many of 100 requests.
    pub abort: Option<(Abort, u32)>,
    /// Only requests with this header, of this value where given.
    pub when: Option<(HeaderName, Option<HeaderValue>)>,
}

/// A made-up failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// Every request; gRPC requests get what clients make of it.
    Http(StatusCode),
    /// gRPC requests only.
    Grpc(u16),
}

/// What one request gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// First this.
    pub delay: Option<Duration>,
    /// Then this.
    pub abort: Option<Abort>,
}

impl Fault {
    /// Draws for a request.
    pub fn draw(&self, headers: &HeaderMap, grpc: bool, rng: &mut impl Rng) -> Drawn {
        if !self.concerns(headers) {
            return Drawn::default();
        }
        let mut hit = |percent: u32| percent >= 100 || percent > 0 && rng.random_range(0..100) < percent;
        let delay = self.delay.and_then(|(delay, percent)| hit(percent).then_some(delay));
        let abort = self.abort.filter(|(abort, _)| grpc || matches!(abort, Abort::Http(_)));
        let abort = abort.and_then(|(abort, percent)| hit(percent).then_some(abort));
        Drawn { delay, abort }
    }

    fn concerns(&self, headers: &HeaderMap) -> bool {
        match &self.when {
            None => true,
            Some((name, None)) => headers.contains_key(name),
            Some((name, Some(value))) => headers.get_all(name).iter().any(|given| given == value),
        }
    }
}

/// The gRPC status that clients make of an HTTP status (grpc/grpc, doc/http-grpc-status-mapping.md).
#[must_use]
pub const fn grpc_of_http(status: u16) -> u16 {
    match status {
        // INTERNAL
        400 => 13,
        // UNAUTHENTICATED
        401 => 16,
        // PERMISSION_DENIED
        403 => 7,
        // UNIMPLEMENTED
        404 => 12,
        // UNAVAILABLE
        429 | 502..=504 => 14,
        // UNKNOWN
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    fn fault(delay: u32, abort: u32) -> Fault {
        Fault {
            delay: Some((Duration::from_secs(1), delay)),
            abort: Some((Abort::Http(StatusCode::IM_A_TEAPOT), abort)),
            when: None,
        }
    }

    #[test]
    fn the_share_is_within_five_standard_deviations_and_each_is_drawn_by_itself() {
        let mut rng = SmallRng::seed_from_u64(7);
        let fault = fault(50, 10);
        let n = 20_000;
        let drawn: Vec<_> = (0..n).map(|_| fault.draw(&HeaderMap::new(), false, &mut rng)).collect();
        let near = |count: usize, share: f64| {
            let (n, count) = (f64::from(n), count as f64);
            assert!((count - n * share).abs() < 5.0 * (n * share * (1.0 - share)).sqrt(), "{count} of {n}");
        };
        near(drawn.iter().filter(|d| d.delay.is_some()).count(), 0.5);
        near(drawn.iter().filter(|d| d.abort.is_some()).count(), 0.1);
        near(drawn.iter().filter(|d| d.abort.is_some() && d.delay.is_some()).count(), 0.05);
    }

    #[test]
    fn none_and_all_are_exact() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..1000 {
            assert_eq!(fault(0, 0).draw(&HeaderMap::new(), false, &mut rng), Drawn::default());
            let all = fault(100, 100).draw(&HeaderMap::new(), true, &mut rng);
            assert!(all.delay.is_some() && all.abort.is_some());
        }
    }

    #[test]
    fn only_requests_with_the_header_and_only_grpc_where_it_is_a_grpc_status() {
        let mut rng = SmallRng::seed_from_u64(1);
        let with = |value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static("x-chaos"), HeaderValue::from_static(value))])
        };
        let name = HeaderName::from_static("x-chaos");
        let any = Fault { when: Some((name.clone(), None)), ..fault(100, 100) };
        assert_eq!(any.draw(&HeaderMap::new(), false, &mut rng), Drawn::default());
        assert!(any.draw(&with("x"), false, &mut rng).abort.is_some());
        let one = Fault { when: Some((name, Some(HeaderValue::from_static("1")))), ..fault(100, 100) };
        assert_eq!(one.draw(&with("2"), false, &mut rng), Drawn::default());
        assert!(one.draw(&with("1"), false, &mut rng).abort.is_some());
        let grpc = Fault { abort: Some((Abort::Grpc(8), 100)), ..fault(0, 0) };
        assert_eq!(grpc.draw(&HeaderMap::new(), false, &mut rng).abort, None);
        assert_eq!(grpc.draw(&HeaderMap::new(), true, &mut rng).abort, Some(Abort::Grpc(8)));
    }
}
