//! What a response asks of those who would try again: `retry-after` (RFC 9110 section 10.2.3) and, of gRPC,
//! `grpc-retry-pushback-ms` (gRFC A6). Reads headers or trailers; it decides nothing.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue};

use crate::retry::Pushback;

const GRPC: &str = "grpc-retry-pushback-ms";

/// The wait that is asked for. What cannot be understood is as if it were not there.
#[must_use]
pub fn asked(headers: &HeaderMap, now: SystemTime) -> Option<Pushback> {
    if let Some(value) = headers.get(GRPC) {
        // gRFC A6: negative, or not a number, means never.
        let ms = value.to_str().ok().and_then(|text| text.trim().parse().ok());
        return Some(ms.map_or(Pushback::Never, |ms| Pushback::After(Duration::from_millis(ms))));
    }
    headers.get(RETRY_AFTER).and_then(|value| after(value, now)).map(Pushback::After)
}

fn after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A moment that has passed already asks for nothing.
    httpdate::parse_http_date(text).ok().map(|at| at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &'static str, value: &str) -> Option<Pushback> {
        // Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 section 5.6.7.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        asked(&HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())]), now)
    }

    #[test]
    fn seconds_and_dates_are_understood_and_nonsense_is_not_there() {
        let seconds = |n| Some(Pushback::After(Duration::from_secs(n)));
        assert_eq!(of("retry-after", "0"), seconds(0));
        assert_eq!(of("retry-after", " 120 "), seconds(120));
        assert_eq!(of("retry-after", "Sun, 06 Nov 1994 08:50:00 GMT"), seconds(23));
        assert_eq!(of("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), seconds(0));
        for nonsense in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(of("retry-after", nonsense), None, "{nonsense}");
        }
        assert_eq!(asked(&HeaderMap::new(), SystemTime::now()), None);
    }

    #[test]
    fn grpc_may_also_say_never() {
        assert_eq!(of(GRPC, "250"), Some(Pushback::After(Duration::from_millis(250))));
        for never in ["-1", "", "x"] {
            assert_eq!(of(GRPC, never), Some(Pushback::Never), "{never}");
        }
    }
}
