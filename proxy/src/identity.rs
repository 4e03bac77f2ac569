//! The proxy's certificate: a new key and request each time, signed by the operator for the pod's token, renewed at
//! two thirds of its life. It tries for ever, and every failure says why. The key stays in memory and goes to `tls`
//! only; what the certificate is used for is none of its business.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status as Answer};
use weft_api::Identity;
use weft_api::v1::SignRequest;
use weft_api::v1::identity_client::IdentityClient;

use crate::backoff::Backoff;
use crate::dial::{self, DialError, chain};
use crate::settings::Settings;
use crate::status::Status;
use crate::tls::{Bundle, Leaf, PeerError, Tls, TlsError, leaf};

#[cfg(test)]
mod tests;

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// Projected tokens are some 1-2 KiB.
const MAX_TOKEN: usize = 64 << 10;
/// The clock is looked at this often, so that a suspended machine renews soon after it wakes.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The projected token.
    #[error("the token {file} cannot be read")]
    Token {
        /// Where it should be.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operator cannot be reached, or is not the operator.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The operator says that the token, or the pod, is not good.
    #[error("the operator refused the token: {0}")]
    Refused(String),
    /// Anything else that the operator answers.
    #[error("the operator could not sign ({0:?}): {1}")]
    Answer(Code, String),
    /// Nothing came.
    #[error("the operator did not answer in time")]
    Timeout,
    /// The key or the request could not be made.
    #[error("the certificate request could not be made")]
    Request(#[from] rcgen::Error),
    /// What it signed is not a workload's certificate.
    #[error("the signed certificate is unusable")]
    Leaf(#[source] PeerError),
    /// What it signed is not for this workload.
    #[error("the operator signed for {signed}, but this workload is {own}")]
    Identity {
        /// In the certificate.
        signed: Identity,
        /// As configured.
        own: Identity,
    },
    /// What it signed does not fit.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Keeps the certificate fresh, for ever.
pub async fn run(settings: Arc<Settings>, tls: Arc<Tls>, status: Arc<Status>) {
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    loop {
        match sign(&settings, &tls).await {
            Ok(leaf) => {
                // The status first: who reads the log may look at /ready at once.
                status.signed(Ok(leaf.not_after));
                tracing::info!(identity = %leaf.identity, serial = %leaf.serial, "certificate signed");
                let early = rand::rng().random_range(0.0..0.1);
                until_renewal(&tls, renewal(SystemTime::now(), leaf.not_after, early), &mut backoff).await;
            }
            Err(error) => {
                let wait = backoff.wait();
                let reason = chain(&error);
                status.signed(Err(reason.clone()));
                tracing::warn!(%reason, retry_in_ms = wait.as_millis() as u64, "no certificate");
                sleep(wait).await;
            }
        }
    }
}

/// One certificate. It is in force when this returns.
pub async fn sign(settings: &Settings, tls: &Tls) -> Result<Leaf, SignError> {
    let token = token(settings).await?;
    let roots = dial::trusted_roots(settings, tls).await?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([])?;
    // The operator takes the public key only; names are its own to decide.
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    let message = SignRequest { csr_der: request.der().to_vec().into(), token };

    let asked = async {
        let channel = dial::operator(&settings.operator, &roots, None).await?;
        IdentityClient::new(channel).sign(message).await.map_err(answer)
    };
    let signed = timeout(SIGN_TIMEOUT, asked).await.map_err(|_| SignError::Timeout)??.into_inner();

    let certificates =
        |list: Vec<bytes::Bytes>| list.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let certificate: Vec<CertificateDer<'static>> = certificates(signed.chain_der);
    let leaf = leaf(&certificate).map_err(SignError::Leaf)?;
    if leaf.identity != settings.identity {
        return Err(SignError::Identity { signed: leaf.identity, own: settings.identity.clone() });
    }
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let bundle = Bundle { roots: certificates(signed.roots_der), epoch: signed.roots_epoch };
    tls.set_identity(certificate, key.into(), bundle)?;
    Ok(leaf)
}

async fn token(settings: &Settings) -> Result<String, SignError> {
    let failed = |source| SignError::Token { file: settings.token_file.display().to_string(), source };
    let token = tokio::fs::read_to_string(&settings.token_file).await.map_err(failed)?;
    let token = token.trim();
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "empty, or larger than 64 KiB")));
    }
    Ok(token.to_owned())
}

fn answer(status: Answer) -> SignError {
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => SignError::Refused(message),
        code => SignError::Answer(code, message),
    }
}

/// Two thirds into what is left, up to `early` (a share, for jitter) sooner.
#[must_use]
pub fn renewal(now: SystemTime, not_after: SystemTime, early: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(2.0 / 3.0 * (1.0 - early))
}

// Returns when it is time; at once when the own certificate is not of the trust bundle any more (a root that went).
async fn until_renewal(tls: &Tls, at: SystemTime, backoff: &mut Backoff) {
    let mut changed = tls.changed();
    if at <= SystemTime::now() {
        // Expired on arrival: the clocks disagree. Not in a tight loop.
        sleep(backoff.wait()).await;
        return;
    }
    backoff.reset();
    while let Ok(left) = at.duration_since(SystemTime::now()) {
        tokio::select! {
            () = sleep(left.min(LOOK_AT_CLOCK)) => {}
            Ok(()) = changed.changed() => {
                if !tls.own_is_trusted() {
                    tracing::info!("the own certificate's root has left the trust bundle, renewing now");
                    sleep(backoff.wait()).await;
                    return;
                }
            }
        }
    }
}
