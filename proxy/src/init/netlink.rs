//! The rules as nf_tables netlink messages, and the socket they go through. Nothing but encoding: what the rules are
//! stands in `rules`. Source: Linux `uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`; the `nftables` netlink family's
//! specification in the kernel's documentation.
//!
//! Attributes are 4-byte aligned {length, type, value}; numbers inside nf_tables attributes are big-endian.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::rules::{Action, Chain, Hook, Rule, Test};

/// Why the kernel did not take the rules.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No capability.
    #[error(
        "NET_ADMIN is missing: the init container needs the capability, or the pod's interception must be set up by other means"
    )]
    Permission,
    /// No nf_tables, or no nat in it.
    #[error(
        "the kernel has no nf_tables with nat and redirect support (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_REDIR)"
    )]
    Unsupported,
    /// Everything else.
    #[error("the kernel refused message {message} of the transaction")]
    Refused {
        /// Which one, counted from 0.
        message: u32,
        /// With what.
        source: io::Error,
    },
    /// The socket.
    #[error("netlink does not work")]
    Socket(#[from] io::Error),
}

// Attribute numbers of nf_tables.h that libc does not name.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const META_REGISTER: u16 = 1;
const META_KEY: u16 = 2;
const CMP_REGISTER: u16 = 1;
const CMP_OPERATION: u16 = 2;
const CMP_DATA: u16 = 3;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const BITWISE_SOURCE: u16 = 1;
const BITWISE_TARGET: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const REDIRECT_PORT: u16 = 1;

const NESTED: u16 = 1 << 15;
/// `dstnat`, where NAT of destinations belongs.
const PRIORITY: i32 = -100;
const ACCEPT: u32 = 1;
/// The loopback device is the first one of every network namespace.
const LOOPBACK: u32 = 1;

/// A message or a nest of attributes being written.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
    fn number(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_be_bytes())
    }
    fn text(self, kind: u16, value: &str) -> Self {
        self.put(kind, &[value.as_bytes(), &[0]].concat())
    }
    fn nest(self, kind: u16, inner: Self) -> Self {
        self.put(kind | NESTED, &inner.0)
    }
    fn expression(self, name: &str, data: Self) -> Self {
        self.nest(LIST_ELEMENT, Self::default().text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data))
    }
}

fn meta(list: Attributes, key: libc::c_int) -> Attributes {
    let data = Attributes::default().number(META_KEY, key.cast_unsigned()).number(META_REGISTER, register());
    list.expression("meta", data)
}

fn compare(list: Attributes, operation: libc::c_int, value: &[u8]) -> Attributes {
    let data = Attributes::default()
        .number(CMP_REGISTER, register())
        .number(CMP_OPERATION, operation.cast_unsigned())
        .nest(CMP_DATA, Attributes::default().put(DATA_VALUE, value));
    list.expression("cmp", data)
}

fn load(list: Attributes, base: libc::c_int, offset: u32, length: u32) -> Attributes {
    let data = Attributes::default()
        .number(PAYLOAD_REGISTER, register())
        .number(PAYLOAD_BASE, base.cast_unsigned())
        .number(PAYLOAD_OFFSET, offset)
        .number(PAYLOAD_LENGTH, length);
    list.expression("payload", data)
}

const fn register() -> u32 {
    libc::NFT_REG_1.cast_unsigned()
}

fn to_loopback(list: Attributes) -> Attributes {
    compare(meta(list, libc::NFT_META_OIF), libc::NFT_CMP_EQ, &LOOPBACK.to_ne_bytes())
}

fn to_port(list: Attributes, port: u16) -> Attributes {
    let tcp = [libc::IPPROTO_TCP.to_ne_bytes()[0]];
    let list = compare(meta(list, libc::NFT_META_L4PROTO), libc::NFT_CMP_EQ, &tcp);
    compare(load(list, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2), libc::NFT_CMP_EQ, &port.to_be_bytes())
}

fn expressions(rule: &Rule) -> Attributes {
    let list = Attributes::default();
    let list = match rule.0 {
        Test::Always => list,
        // Values of meta are in host order.
        Test::NotTcp => compare(
            meta(list, libc::NFT_META_L4PROTO),
            libc::NFT_CMP_NEQ,
            &[libc::IPPROTO_TCP.to_ne_bytes()[0]],
        ),
        Test::FromLoopback => {
            compare(meta(list, libc::NFT_META_IIF), libc::NFT_CMP_EQ, &LOOPBACK.to_ne_bytes())
        }
        Test::ToLoopback => to_loopback(list),
        Test::User(uid) => compare(meta(list, libc::NFT_META_SKUID), libc::NFT_CMP_EQ, &uid.to_ne_bytes()),
        Test::Port(port) => to_port(list, port),
        Test::PortOfLoopback(port) => to_port(to_loopback(list), port),
        Test::Destination(network) => {
            let (value, mask) = network.bytes();
            let (family, offset, length) = if network.address.is_ipv4() {
                (libc::NFPROTO_IPV4, 16, 4)
            } else {
                (libc::NFPROTO_IPV6, 24, 16)
            };
            let family = [family.to_ne_bytes()[0]];
            let list = compare(meta(list, libc::NFT_META_NFPROTO), libc::NFT_CMP_EQ, &family);
            let list = load(list, libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length);
            let bits = Attributes::default()
                .number(BITWISE_SOURCE, register())
                .number(BITWISE_TARGET, register())
                .number(BITWISE_LENGTH, length)
                .nest(BITWISE_MASK, Attributes::default().put(DATA_VALUE, &mask))
                .nest(BITWISE_XOR, Attributes::default().put(DATA_VALUE, &vec![0; mask.len()]));
            compare(list.expression("bitwise", bits), libc::NFT_CMP_EQ, &value)
        }
    };
    match rule.1 {
        Action::Return => {
            let code = Attributes::default().number(VERDICT_CODE, libc::NFT_RETURN.cast_unsigned());
            let data = Attributes::default()
                .number(IMMEDIATE_REGISTER, libc::NFT_REG_VERDICT.cast_unsigned())
                .nest(IMMEDIATE_DATA, Attributes::default().nest(DATA_VERDICT, code));
            list.expression("immediate", data)
        }
        Action::Redirect(port) => {
            let data = Attributes::default()
                .number(IMMEDIATE_REGISTER, register())
                .nest(IMMEDIATE_DATA, Attributes::default().put(DATA_VALUE, &port.to_be_bytes()));
            list.expression("immediate", data)
                .expression("redir", Attributes::default().number(REDIRECT_PORT, register()))
        }
    }
}

fn chain(table: &str, chain: &Chain) -> Attributes {
    let number = match chain.hook {
        Hook::Prerouting => libc::NF_INET_PRE_ROUTING,
        Hook::Output => libc::NF_INET_LOCAL_OUT,
    };
    let hook = Attributes::default()
        .number(HOOK_NUMBER, number.cast_unsigned())
        .number(HOOK_PRIORITY, PRIORITY.cast_unsigned());
    Attributes::default()
        .text(CHAIN_TABLE, table)
        .text(CHAIN_NAME, chain.hook.name())
        .nest(CHAIN_HOOK, hook)
        .number(CHAIN_POLICY, ACCEPT)
        .text(CHAIN_TYPE, "nat")
}

/// Messages of one transaction; the sequence number of each is its position.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    messages: u32,
}

impl Batch {
    /// `kind` with its subsystem, an nfgenmsg of `family` with `resource`, then attributes.
    fn push(&mut self, kind: u16, flags: libc::c_int, family: libc::c_int, resource: u16, attributes: &[u8]) {
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.messages.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family.to_ne_bytes()[0], 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
        self.messages += 1;
    }
    fn table_message(&mut self, kind: libc::c_int, flags: libc::c_int, attributes: &Attributes) {
        self.push(nftables(kind), flags | libc::NLM_F_ACK, libc::NFPROTO_INET, 0, &attributes.0);
    }
    fn mark(&mut self, kind: libc::c_int) {
        let kind = u16::try_from(kind).unwrap_or_default();
        let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or_default();
        self.push(kind, 0, libc::AF_UNSPEC, subsystem, &[]);
    }
}

fn nftables(kind: libc::c_int) -> u16 {
    u16::try_from((libc::NFNL_SUBSYS_NFTABLES << 8) | kind).unwrap_or_default()
}

/// Puts the table in place of one of the same name, all or nothing.
///
/// # Errors
/// See [`Error`].
pub fn replace_table(table: &str, chains: &[Chain]) -> Result<(), Error> {
    let named = Attributes::default().text(TABLE_NAME, table);
    let mut batch = Batch::default();
    batch.mark(libc::NFNL_MSG_BATCH_BEGIN);
    // Added first, so that deleting it cannot fail.
    batch.table_message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, &named);
    batch.table_message(libc::NFT_MSG_DELTABLE, 0, &named);
    batch.table_message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, &named);
    for one in chains {
        batch.table_message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, &chain(table, one));
        for rule in &one.rules {
            let attributes = Attributes::default()
                .text(RULE_TABLE, table)
                .text(RULE_CHAIN, one.hook.name())
                .nest(RULE_EXPRESSIONS, expressions(rule));
            batch.table_message(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, &attributes);
        }
    }
    batch.mark(libc::NFNL_MSG_BATCH_END);
    let socket = Socket::open()?;
    socket.send(&batch.bytes)?;
    // Every message but the two marks is answered, in order; a refusal undoes all.
    let mut answers = 0;
    while answers < batch.messages - 2 {
        for answer in socket.receive()? {
            if let Some(code) = answer.error {
                if code != 0 {
                    return Err(refused(answer.sequence, io::Error::from_raw_os_error(-code)));
                }
                answers += 1;
            }
        }
    }
    Ok(())
}

/// How many rules the table holds.
///
/// # Errors
/// See [`Error`].
pub fn count_rules(table: &str) -> Result<usize, Error> {
    let mut batch = Batch::default();
    let asked = Attributes::default().text(RULE_TABLE, table);
    batch.push(nftables(libc::NFT_MSG_GETRULE), libc::NLM_F_DUMP, libc::NFPROTO_INET, 0, &asked.0);
    let socket = Socket::open()?;
    socket.send(&batch.bytes)?;
    let mut rules = 0;
    loop {
        for answer in socket.receive()? {
            match answer.error {
                Some(code) if code != 0 => return Err(refused(0, io::Error::from_raw_os_error(-code))),
                _ if answer.done => return Ok(rules),
                _ => rules += usize::from(answer.kind == nftables(libc::NFT_MSG_NEWRULE)),
            }
        }
    }
}

fn refused(message: u32, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::Permission,
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT | libc::EPROTONOSUPPORT) => {
            Error::Unsupported
        }
        _ => Error::Refused { message, source },
    }
}

struct Answer {
    kind: u16,
    sequence: u32,
    /// Of an NLMSG_ERROR: 0 for done, otherwise a negative errno.
    error: Option<i32>,
    done: bool,
}

struct Socket(OwnedFd);

impl Socket {
    fn open() -> Result<Self, Error> {
        // SAFETY: plain system call; the descriptor is owned from here on.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
        };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => Error::Unsupported,
                _ => Error::Socket(error),
            });
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else has.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // An answer that never comes is an error, not a pod that hangs in its init step.
        let timeout = libc::timeval { tv_sec: 5, tv_usec: 0 };
        // SAFETY: the pointer and length describe `timeout`.
        unsafe {
            libc::setsockopt(
                socket.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                u32::try_from(size_of::<libc::timeval>()).unwrap_or_default(),
            )
        };
        Ok(socket)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the pointer and length describe `bytes`.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 { Err(refused(0, io::Error::last_os_error())) } else { Ok(()) }
    }

    fn receive(&self) -> Result<Vec<Answer>, Error> {
        let mut buffer = vec![0u8; 64 << 10];
        // SAFETY: the pointer and length describe `buffer`.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error().into()) };
        buffer.truncate(length);
        Ok(answers(&buffer))
    }
}

/// Splits what was received; stops at what is cut short.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let kind = u16::from_ne_bytes([k0, k1]);
        let Some(body) = bytes.get(16..length) else { break };
        let is_error = i32::from(kind) == libc::NLMSG_ERROR;
        let code = body.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b));
        found.push(Answer {
            kind,
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            error: if is_error { code } else { None },
            done: i32::from(kind) == libc::NLMSG_DONE,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_is_received_is_split_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answers(&bytes);
        }
    }

    #[test]
    fn attributes_are_aligned_and_their_length_is_without_the_padding() {
        let written = Attributes::default().text(1, "ab").number(2, 7).0;
        assert_eq!(written.len(), 8 + 8);
        assert_eq!(written[..2], 7u16.to_ne_bytes());
        assert_eq!(written[12..], 7u32.to_be_bytes());
    }
}
