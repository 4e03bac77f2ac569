//! A peer of another trust domain, on a connection that is open: what it has shown, to be looked at again whenever bundles
//! change. It closes nothing itself.

use std::cell::Cell;

use rustls::CommonState;
use rustls::pki_types::{CertificateDer, UnixTime};
use weft_api::Identity;

use super::Tls;

/// What a peer of another trust domain has shown.
#[derive(Debug)]
pub struct Abroad {
    chain: Vec<CertificateDer<'static>>,
    client: bool,
    at: UnixTime,
    /// For which [`Tls::generation`] it was good.
    good: Cell<u64>,
}

impl Abroad {
    /// Of a handshake that has just been verified; `None`: the peer is of the own trust domain. `client`: it is the client.
    #[must_use]
    pub fn of(own: &Identity, peer: &Identity, session: &CommonState, client: bool) -> Option<Self> {
        if peer.trust_domain == own.trust_domain {
            return None;
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        // Of no generation: bundles may have changed since the handshake began.
        Some(Self { chain, client, at: UnixTime::now(), good: Cell::new(u64::MAX) })
    }

    /// Whether its trust domain still vouches for it. Its certificate may have expired since: open connections outlive that.
    #[must_use]
    pub fn is_trusted(&self, tls: &Tls) -> bool {
        let generation = tls.generation();
        if self.good.get() == generation {
            return true;
        }
        let trusted = tls.vouches(self.client, &self.chain, self.at);
        if trusted {
            self.good.set(generation);
        }
        trusted
    }

    /// Waits until nobody vouches for it any more.
    pub async fn disowned(&self, tls: &Tls) {
        let mut changed = tls.changed();
        while self.is_trusted(tls) {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
