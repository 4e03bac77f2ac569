//! Blocks of IP addresses. An IPv4 address in IPv6 clothes (`::ffff:10.0.0.1`) is an IPv4 address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Addresses with the same leading bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    pub(super) v4: bool,
    pub(super) length: u8,
    bits: u128,
}

/// A text that is not a block.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a block of IP addresses: write for example 10.0.0.0/8, 10.1.2.3 or 2001:db8::/32")]
pub struct NoBlock(String);

/// The address, left-aligned.
fn bits_of(address: IpAddr) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(address) => (true, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (false, address.to_bits()),
    }
}

const fn leading(bits: u128, length: u8) -> u128 {
    match length {
        0 => 0,
        length => bits & (u128::MAX << (128 - length as u32)),
    }
}

impl Block {
    /// The block of this length that an address is in.
    #[must_use]
    pub fn around(address: IpAddr, length: u8) -> Self {
        let (v4, bits) = bits_of(address);
        Self { v4, length, bits: leading(bits, length.min(128)) }
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        Self::around(address, self.length) == *self
    }
}

impl FromStr for Block {
    type Err = NoBlock;

    fn from_str(text: &str) -> Result<Self, NoBlock> {
        let bad = || NoBlock(text.chars().take(60).collect());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length: u8 = match length {
            None => most,
            Some(length) if length.bytes().all(|b| b.is_ascii_digit()) => {
                length.parse().map_err(|_| bad())?
            }
            Some(_) => return Err(bad()),
        };
        // `::ffff:10.0.0.0/104` is `10.0.0.0/8`; fewer bits than tell that it is one make no sense.
        let (v4, bits) = bits_of(address);
        let length = match (v4 && !address.is_ipv4(), length) {
            _ if length > most => return Err(bad()),
            (true, length) => length.checked_sub(96).ok_or_else(bad)?,
            (false, length) => length,
        };
        Ok(Self { v4, length, bits: leading(bits, length) })
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.v4 {
            let address = std::net::Ipv4Addr::from_bits(u32::try_from(self.bits >> 96).unwrap_or_default());
            write!(f, "{address}/{}", self.length)
        } else {
            write!(f, "{}/{}", std::net::Ipv6Addr::from_bits(self.bits), self.length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_addresses_with_its_leading_bits() {
        for (block, address, has) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "1.2.3.4", false),
            ("2001:db8::/32", "2001:db8:1::9", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("::ffff:10.0.0.0/104", "10.7.7.7", true),
        ] {
            assert_eq!(
                block.parse::<Block>().unwrap().has(address.parse().unwrap()),
                has,
                "{block} {address}"
            );
        }
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::/129",
            "::ffff:1.2.3.4/95",
            "10.0.0.0/8/8",
        ] {
            assert!(bad.parse::<Block>().is_err(), "{bad}");
        }
        assert_eq!("10.1.2.3/8".parse::<Block>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("2001:db8::1".parse::<Block>().unwrap().to_string(), "2001:db8::1/128");
    }
}
