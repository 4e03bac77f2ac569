//! Which rules there are, as values; and how one is spelled for people. Pure: it knows no netlink.
//!
//! Order matters: the first rule that says `return` lets a connection pass untouched, the last one redirects.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use weft_api::names;

use super::Args;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any address of it.
    pub address: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a network: write for example 10.1.0.0/16 or fd00::/8");
        let (address, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(wrong()) } else { Ok(Self { address, prefix }) }
    }
}

impl Network {
    /// The address and the mask in network byte order, 4 or 16 bytes each; host bits are zero.
    #[must_use]
    pub fn bytes(self) -> (Vec<u8>, Vec<u8>) {
        let address = match self.address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mask: Vec<u8> = (0..address.len())
            .map(|i| {
                let bits = usize::from(self.prefix).saturating_sub(i * 8).min(8);
                if bits == 0 { 0 } else { u8::MAX << (8 - bits) }
            })
            .collect();
        (address.iter().zip(&mask).map(|(a, m)| a & m).collect(), mask)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Everything but TCP.
    NotTcp,
    /// It came in by the loopback device.
    FromLoopback,
    /// It leaves by the loopback device: to 127.0.0.1, ::1 or an address of the pod itself.
    ToLoopback,
    /// It was sent by this user.
    User(u32),
    /// Its TCP destination port.
    Port(u16),
    /// Its TCP destination port, where it leaves by the loopback device.
    PortOfLoopback(u16),
    /// Its destination address.
    Destination(Network),
    /// Nothing: the rule holds for all that is left.
    Always,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it pass untouched.
    Return,
    /// To this port of the pod itself.
    Redirect(u16),
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(pub Test, pub Action);

/// Where in the packet's way a chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What comes from outside.
    Prerouting,
    /// What the pod sends.
    Output,
}

/// A nat chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where.
    pub hook: Hook,
    /// In order.
    pub rules: Vec<Rule>,
}

impl Hook {
    /// Also the chain's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        }
    }
}

/// The chains of the table.
#[must_use]
pub fn chains(args: &Args) -> Vec<Chain> {
    let pass = |test| Rule(test, Action::Return);
    let mut inbound = vec![
        pass(Test::NotTcp),
        pass(Test::FromLoopback),
        pass(Test::Port(names::METRICS_PORT)),
        // By this the kubelet finds out that the rules are there; see `interception`.
        Rule(Test::Port(names::CHECK_PORT), Action::Redirect(names::METRICS_PORT)),
    ];
    inbound.extend(args.skip_inbound_ports.iter().map(|&port| pass(Test::Port(port))));
    inbound.push(Rule(Test::Always, Action::Redirect(names::INBOUND_PORT)));

    let mut outbound = vec![
        pass(Test::NotTcp),
        // By this the proxy does, so it comes before what lets the proxy pass.
        Rule(Test::PortOfLoopback(names::CHECK_PORT), Action::Redirect(names::OUTBOUND_PORT)),
        pass(Test::User(args.uid)),
        pass(Test::ToLoopback),
    ];
    outbound.extend(args.skip_outbound_ports.iter().map(|&port| pass(Test::Port(port))));
    outbound.extend(args.skip_outbound_cidrs.iter().map(|&network| pass(Test::Destination(network))));
    outbound.push(Rule(Test::Always, Action::Redirect(names::OUTBOUND_PORT)));

    vec![Chain { hook: Hook::Prerouting, rules: inbound }, Chain { hook: Hook::Output, rules: outbound }]
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Test::NotTcp => f.write_str("meta l4proto != tcp ")?,
            Test::FromLoopback => f.write_str("iif lo ")?,
            Test::ToLoopback => f.write_str("oif lo ")?,
            Test::User(uid) => write!(f, "meta skuid {uid} ")?,
            Test::Port(port) => write!(f, "tcp dport {port} ")?,
            Test::PortOfLoopback(port) => write!(f, "oif lo tcp dport {port} ")?,
            Test::Destination(network) if network.address.is_ipv4() => write!(f, "ip daddr {network} ")?,
            Test::Destination(network) => write!(f, "ip6 daddr {network} ")?,
            Test::Always => {}
        }
        match self.1 {
            Action::Return => f.write_str("return"),
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.hook.name();
        writeln!(f, "chain {name} {{ type nat hook {name} priority dstnat; policy accept;")?;
        for rule in &self.rules {
            writeln!(f, "  {rule}")?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_own_traffic_loopback_and_metrics_are_never_redirected() {
        let text: String = chains(&Args::default()).iter().map(ToString::to_string).collect();
        for line in ["meta skuid 2102 return", "oif lo return", "tcp dport 15020 return", "iif lo return"] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn the_check_is_redirected_whoever_sends_it_and_whatever_else_is_skipped() {
        let args = Args {
            skip_inbound_ports: vec![15029],
            skip_outbound_ports: vec![15029],
            skip_outbound_cidrs: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            ..Args::default()
        };
        let [inbound, outbound] =
            <[String; 2]>::try_from(chains(&args).iter().map(ToString::to_string).collect::<Vec<_>>())
                .unwrap();
        let position =
            |text: &str, line: &str| text.find(line).unwrap_or_else(|| panic!("{line} is not in\n{text}"));
        let check = position(&inbound, "tcp dport 15029 redirect to :15020");
        assert!(check < position(&inbound, "tcp dport 15029 return"), "{inbound}");
        let check = position(&outbound, "oif lo tcp dport 15029 redirect to :15001");
        assert!(check < position(&outbound, "meta skuid 2102 return"), "{outbound}");
        assert!(check < position(&outbound, "ip daddr 0.0.0.0/0 return"), "{outbound}");
    }

    #[test]
    fn everything_that_passes_comes_before_the_redirect() {
        let args = Args {
            skip_inbound_ports: vec![22, 9100],
            skip_outbound_ports: vec![3306],
            skip_outbound_cidrs: vec!["10.1.2.3/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..Args::default()
        };
        for chain in chains(&args) {
            let redirects: Vec<usize> = (0..chain.rules.len())
                .filter(|&i| matches!(chain.rules[i], Rule(Test::Always, Action::Redirect(_))))
                .collect();
            assert_eq!(redirects, [chain.rules.len() - 1]);
        }
    }

    #[test]
    fn host_bits_of_a_network_do_not_count() {
        let network: Network = "10.1.2.3/20".parse().unwrap();
        assert_eq!(network.bytes(), (vec![10, 1, 0, 0], vec![255, 255, 240, 0]));
        let all: Network = "::/0".parse().unwrap();
        assert_eq!(all.bytes(), (vec![0; 16], vec![0; 16]));
    }

    #[test]
    fn what_is_not_a_network_is_refused_with_a_sentence() {
        for wrong in ["", "10.0.0.1", "10.0.0.0/33", "fd00::/129", "a/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().unwrap_err().contains("is not a network"), "{wrong}");
        }
    }
}
