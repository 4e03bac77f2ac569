//! `Config.Stream` on the wire, as [`weft_api::v1`] has it, but for one thing: services go out as the bytes that were made once
//! for all streams. A field of bytes and a field of a message are the same on the wire, so that no proxy sees a difference.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use weft_api::v1::{Address, Federation, FromProxy, Share, Workload, config_server};

use super::stream::Streams;

/// Largest message from a proxy: a subscription to [`super::MAX_ADDRESSES`] fits.
const MAX_MESSAGE: usize = 2 << 20;
const STREAM: &str = "/weft.v1.Config/Stream";

/// `weft.v1.ToProxy`, with the same numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Update {
    /// Grows with every message of a stream; 0: not acknowledged.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// How the proxy treats its own pod.
    #[prost(message, optional, tag = "2")]
    pub workload: Option<Workload>,
    /// What addresses are.
    #[prost(message, repeated, tag = "3")]
    pub addresses: Vec<Address>,
    /// Services, each a `weft.v1.Service`.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub services: Vec<Bytes>,
    /// Keys of services that it need not know any more.
    #[prost(string, repeated, tag = "5")]
    pub removed_services: Vec<String>,
    /// The whole trust bundle.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub roots_der: Vec<Bytes>,
    /// Its parts of limits.
    #[prost(message, repeated, tag = "7")]
    pub rate_shares: Vec<Share>,
    /// Of `roots_der`.
    #[prost(int64, tag = "8")]
    pub roots_epoch: i64,
    /// The bundles of other trust domains; `None`: as before.
    #[prost(message, optional, tag = "9")]
    pub federation: Option<Federation>,
}

/// The service, for the server's router.
#[derive(Clone)]
pub struct Config(Arc<Streams>);

impl Config {
    /// Of these streams.
    pub fn new(streams: Streams) -> Self {
        Self(Arc::new(streams))
    }
}

impl NamedService for Config {
    const NAME: &'static str = config_server::SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for Config {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != STREAM {
            return Box::pin(async { Ok(Status::unimplemented("there is no such method").into_http()) });
        }
        let streams = Arc::clone(&self.0);
        Box::pin(async move {
            let method = tower::service_fn(move |request: Request<Streaming<FromProxy>>| {
                std::future::ready(streams.stream(request))
            });
            let codec = ProstCodec::<Update, FromProxy>::default();
            Ok(Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).streaming(method, request).await)
        })
    }
}

#[cfg(test)]
impl Update {
    /// As a proxy reads it.
    pub fn read(&self) -> weft_api::v1::ToProxy {
        use prost::Message as _;
        weft_api::v1::ToProxy::decode(&*self.encode_to_vec()).expect("it is a ToProxy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use weft_api::v1::{self, ToProxy};

    #[test]
    fn a_proxy_sees_no_difference() {
        let service = v1::Service {
            key: "shop/back:80".into(),
            hosts: vec!["back".into()],
            clusters: vec![v1::Cluster::default()],
            ..Default::default()
        };
        let expected = ToProxy {
            version: 7,
            workload: Some(Workload { pod: "p".into(), ..Default::default() }),
            addresses: vec![Address { address: "10.0.0.1:80".into(), target: None }],
            services: vec![service.clone(), v1::Service::default()],
            removed_services: vec!["shop/gone:80".into()],
            roots_der: vec![Bytes::from_static(b"root")],
            rate_shares: vec![Share { limit: "l".into(), share: 3, ..Share::default() }],
            roots_epoch: 9,
            federation: Some(Federation {
                bundles: vec![v1::ForeignBundle {
                    trust_domain: "other.example".into(),
                    roots_der: vec![Bytes::from_static(b"theirs")],
                }],
            }),
        };
        let update = Update {
            version: 7,
            workload: expected.workload.clone(),
            addresses: expected.addresses.clone(),
            services: vec![service.encode_to_vec().into(), Bytes::new()],
            removed_services: expected.removed_services.clone(),
            roots_der: expected.roots_der.clone(),
            rate_shares: expected.rate_shares.clone(),
            roots_epoch: expected.roots_epoch,
            federation: expected.federation.clone(),
        };
        assert_eq!(update.encode_to_vec(), expected.encode_to_vec());
        assert_eq!(update.read(), expected);
        assert_eq!(STREAM, format!("/{}/Stream", Config::NAME));
    }
}
