//! Who is at the other end: the SPIFFE id in the verified client certificate.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TlsConnectInfo};
use tonic::{Request, Status};
use weft_api::Identity;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

type Info = <TlsStream<TcpStream> as Connected>::ConnectInfo;

/// A verified caller.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who.
    pub identity: Identity,
    /// Until when its certificate holds.
    pub not_after: SystemTime,
}

/// The caller of a request.
///
/// # Errors
/// `Unauthenticated` without a certificate, or with one that is no workload's.
pub fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let info: Option<&TlsConnectInfo<_>> = request.extensions().get::<Info>();
    let certificates = info.and_then(TlsConnectInfo::peer_certs);
    let certificate = certificates.as_ref().and_then(|c| c.first());
    let Some(certificate) = certificate else {
        return Err(Status::unauthenticated("a client certificate of the mesh is needed for this call"));
    };
    read(certificate)
        .ok_or_else(|| Status::unauthenticated("the client certificate is not that of a workload"))
}

/// Reads a verified certificate: exactly one URI, and that a workload's (X.509-SVID section 2).
#[must_use]
pub fn read(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
    let seconds = parsed.validity().not_after.timestamp().max(0).unsigned_abs();
    Some(Peer {
        identity: uri.parse().ok()?,
        not_after: SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?,
    })
}
