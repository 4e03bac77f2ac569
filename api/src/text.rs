//! How what the generated types hold as numbers or bytes is written in a configuration file: values of enums by their
//! names (`PeakEwma`, `PEAK_EWMA` and `peakEwma` alike), bytes as the text that they are. Used by the serde attributes
//! that the build script adds. It knows nothing of what the values mean.

use std::collections::HashMap;
use std::hash::Hash;
use std::marker::PhantomData;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An enum whose values have names.
pub trait Named {
    /// Every name and its number.
    const NAMES: &'static [(&'static str, i32)];
}

/// The number of a name.
///
/// # Errors
/// There is no such name; the sentence says which there are.
pub fn number<E: Named>(name: &str) -> Result<i32, String> {
    let plain = |text: &str| text.replace('_', "").to_ascii_lowercase();
    let wanted = plain(name);
    E::NAMES.iter().find(|(known, _)| plain(known) == wanted).map(|(_, number)| *number).ok_or_else(|| {
        let known: Vec<&str> = E::NAMES.iter().map(|(name, _)| *name).collect();
        format!("`{}` is none of {}", name.chars().take(60).collect::<String>(), known.join(", "))
    })
}

fn name<E: Named>(number: i32) -> Result<&'static str, String> {
    let found = E::NAMES.iter().find(|(_, known)| *known == number);
    found.map(|(name, _)| *name).ok_or_else(|| format!("{number} has no name"))
}

/// A weight that is not given.
pub(crate) const fn one() -> u32 {
    1
}

/// A single value.
pub struct Name<E>(PhantomData<E>);

impl<E: Named> Name<E> {
    pub(crate) fn serialize<S: Serializer>(value: &i32, to: S) -> Result<S::Ok, S::Error> {
        name::<E>(*value).map_err(S::Error::custom)?.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
        number::<E>(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A value that may be absent.
pub struct PerhapsName<E>(PhantomData<E>);

impl<E: Named> PerhapsName<E> {
    #[allow(dead_code, reason = "for the optional enums that the protocol may come to have")]
    pub(crate) fn serialize<S: Serializer>(value: &Option<i32>, to: S) -> Result<S::Ok, S::Error> {
        value.map(name::<E>).transpose().map_err(S::Error::custom)?.serialize(to)
    }

    #[allow(dead_code, reason = "for the optional enums that the protocol may come to have")]
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i32>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| number::<E>(&text)).transpose().map_err(D::Error::custom)
    }
}

/// A list of values.
pub struct Names<E>(PhantomData<E>);

impl<E: Named> Names<E> {
    pub(crate) fn serialize<S: Serializer>(values: &[i32], to: S) -> Result<S::Ok, S::Error> {
        let names: Result<Vec<_>, _> = values.iter().map(|value| name::<E>(*value)).collect();
        names.map_err(S::Error::custom)?.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<i32>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| number::<E>(text)).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

/// Values by key.
pub struct NameByKey<E>(PhantomData<E>);

impl<E: Named> NameByKey<E> {
    pub(crate) fn serialize<K, S>(values: &HashMap<K, i32>, to: S) -> Result<S::Ok, S::Error>
    where
        K: Serialize + Hash + Eq,
        S: Serializer,
    {
        let names: Result<HashMap<&K, &str>, String> =
            values.iter().map(|(key, value)| Ok((key, name::<E>(*value)?))).collect();
        names.map_err(S::Error::custom)?.serialize(to)
    }

    pub(crate) fn deserialize<'de, K, D>(from: D) -> Result<HashMap<K, i32>, D::Error>
    where
        K: Deserialize<'de> + Hash + Eq,
        D: Deserializer<'de>,
    {
        let texts = HashMap::<K, String>::deserialize(from)?;
        let numbers = texts.into_iter().map(|(key, text)| Ok((key, number::<E>(&text)?)));
        numbers.collect::<Result<_, String>>().map_err(D::Error::custom)
    }
}

/// Bytes that are text, such as PEM.
pub struct Text;

#[allow(dead_code, reason = "for the bytes that services may come to have")]
impl Text {
    pub(crate) fn serialize<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
        std::str::from_utf8(value).map_err(S::Error::custom)?.serialize(to)
    }

    pub(crate) fn deserialize<'de, B: From<Vec<u8>>, D: Deserializer<'de>>(from: D) -> Result<B, D::Error> {
        Ok(String::deserialize(from)?.into_bytes().into())
    }
}

/// A list of such.
pub struct Texts;

#[allow(dead_code, reason = "for the bytes that services may come to have")]
impl Texts {
    pub(crate) fn serialize<B: AsRef<[u8]>, S: Serializer>(values: &[B], to: S) -> Result<S::Ok, S::Error> {
        let texts: Result<Vec<_>, _> =
            values.iter().map(|value| std::str::from_utf8(value.as_ref())).collect();
        texts.map_err(S::Error::custom)?.serialize(to)
    }

    pub(crate) fn deserialize<'de, B: From<Vec<u8>>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<B>, D::Error> {
        Ok(Vec::<String>::deserialize(from)?.into_iter().map(|text| text.into_bytes().into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Balancer, Protocol, RetryOn};

    #[test]
    fn a_value_is_known_by_any_usual_spelling_of_its_name() {
        for text in ["PeakEwma", "PEAK_EWMA", "peakEwma", "peak_ewma"] {
            assert_eq!(number::<Balancer>(text), Ok(Balancer::PeakEwma as i32), "{text}");
        }
        assert_eq!(number::<RetryOn>("5xx"), Ok(RetryOn::RetryOn5xx as i32));
        assert_eq!(number::<RetryOn>("GatewayError"), Ok(RetryOn::GatewayError as i32));
        assert_eq!(name::<Protocol>(Protocol::Http2 as i32), Ok("Http2"));
    }

    #[test]
    fn an_unknown_name_is_told_what_there_is() {
        let error = number::<Protocol>("spdy").unwrap_err();
        assert_eq!(error, "`spdy` is none of Detect, Http1, Http2, Tls, Tcp");
    }
}
