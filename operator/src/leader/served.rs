//! Whether the cluster serves an API that Weft uses where there is one, and does without where there is none. It only asks.

use std::time::Duration;

use kube::Client;
use tokio::time::sleep;

/// ClusterTrustBundles since Kubernetes 1.33, PodCertificateRequests since 1.35; both are off there unless somebody asks for them.
pub const CERTIFICATES: &str = "certificates.k8s.io/v1beta1";
/// An API comes with an upgrade or a flag of the API server: nothing that has to be noticed soon.
const ASK_AGAIN: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(10);

/// Returns once the cluster serves this resource of [`CERTIFICATES`].
pub async fn wait_for(client: &Client, plural: &'static str) {
    let mut said = false;
    loop {
        let pause = match client.list_api_group_resources(CERTIFICATES).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == plural) => {
                tracing::info!(resource = plural, "the cluster serves it");
                return;
            }
            Ok(_) => ASK_AGAIN,
            Err(kube::Error::Api(status)) if status.code == 404 => ASK_AGAIN,
            Err(error) => {
                tracing::warn!(error = %error, resource = plural, "the cluster cannot be asked what it serves; trying again");
                RETRY
            }
        };
        if pause == ASK_AGAIN && !said {
            tracing::info!(resource = plural, "the cluster does not serve it: going on without");
            said = true;
        }
        sleep(pause).await;
    }
}
