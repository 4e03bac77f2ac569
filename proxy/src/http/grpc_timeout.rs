//! The header `grpc-timeout`: how long the client of a gRPC call waits for its end. Reads and writes it; it keeps no time.
//! Source: grpc/grpc doc/PROTOCOL-HTTP2.md, "Timeout".

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::headers;

/// See the module.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// At most eight digits.
const END: u128 = 100_000_000;
/// More than this is as good as no deadline, and moments stay in range.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The time that the client gives, if it does and the text can be understood.
#[must_use]
pub fn read(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get(GRPC_TIMEOUT)?.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let time = match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    };
    (time <= LONGEST).then_some(time)
}

/// As a header's value, rounded down to what eight digits can say, and never nothing.
#[must_use]
pub fn write(left: Duration) -> HeaderValue {
    let (micros, millis) = (left.as_micros(), left.as_millis());
    let text = if micros < END {
        format!("{}u", micros.max(1))
    } else if millis < END {
        format!("{millis}m")
    } else {
        format!("{}S", u128::from(left.as_secs()).min(END - 1))
    };
    let mut value = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("1u"));
    headers::passing(&mut value);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(value: &str) -> Option<Duration> {
        read(&HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_str(value).unwrap())]))
    }

    #[test]
    fn every_unit_is_understood() {
        for (value, time) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("250m", Duration::from_millis(250)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(of(value), Some(time), "{value}");
        }
    }

    #[test]
    fn what_is_no_timeout_is_none() {
        for value in ["", "S", "5", "5s", "-1S", "1.5S", "100000000u", " 5S", "99999999H", "25H"] {
            assert_eq!(of(value), None, "{value}");
        }
        assert_eq!(read(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again_and_never_longer(micros in 0u64..86_400_000_000) {
            let time = Duration::from_micros(micros);
            let text = write(time);
            prop_assert!(text.len() <= 9);
            let back = of(text.to_str().unwrap()).unwrap();
            prop_assert!(back <= time.max(Duration::from_micros(1)) && time - back.min(time) < Duration::from_secs(1));
            prop_assert!(!back.is_zero());
        }

        #[test]
        fn no_value_panics(bytes in prop::collection::vec(32u8..127, 0..12)) {
            let _ = of(std::str::from_utf8(&bytes).unwrap());
        }
    }
}
