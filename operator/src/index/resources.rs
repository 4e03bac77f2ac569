//! The one list of the kinds of Weft's own resources, for whoever treats all of them alike: statuses, Events, what auditors hear.
//! Another kind is another line in [`Space::resources`]. Reads only.

use std::collections::BTreeMap;

use kube::core::ApiResource;
use serde_json::Value;

use super::Key;
use super::policy::{Spec, Tracked};
use super::space::{Space, Verdict};

/// A resource of whatever kind.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Its kind.
    pub kind: &'static str,
    /// How the API server is asked for it.
    pub api: fn() -> ApiResource,
    /// Namespace and name.
    pub key: &'a Key,
    /// Uid.
    pub uid: &'a str,
    /// Generation of the spec.
    pub generation: i64,
    /// The status as stored.
    pub status: &'a Value,
    /// What to say of it; `None`: it was not judged yet.
    pub verdict: Option<&'a Verdict>,
}

impl Space {
    /// All of them, kind by kind and by name.
    pub fn resources(&self) -> impl Iterator<Item = View<'_>> {
        let settled = &self.settled;
        views(&self.mesh_services, &settled.mesh_services)
            .chain(views(&self.policies, &settled.policies))
            .chain(views(&self.peer_authentications, &settled.peer_authentications))
            .chain(views(&self.authorization_policies, &settled.authorization_policies))
            .chain(views(&self.request_authentications, &settled.request_authentications))
            .chain(views(&self.trust_domains, &settled.trust_domains))
    }
}

fn views<'a, S: Spec>(
    resources: &'a BTreeMap<String, Tracked<S>>,
    verdicts: &'a BTreeMap<String, Verdict>,
) -> impl Iterator<Item = View<'a>> {
    resources.iter().map(|(name, Tracked { now, .. })| View {
        kind: S::KIND,
        api: S::api,
        key: &now.key,
        uid: &now.uid,
        generation: now.generation,
        status: &now.status,
        verdict: verdicts.get(name),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::index::testing::{
        authentication, authorization, index_of, mesh_service, policy, requests, trust_domain,
    };
    use serde_json::json;

    #[test]
    fn each_kind_that_the_chart_installs_is_in_the_list_judged_and_by_its_own_name() {
        // What is wrong about them does not matter here.
        let index = index_of([
            mesh_service("weft-system/a", 1, 1, json!({ "target": { "service": "back" } })),
            policy("weft-system/a", 1, 1, json!({ "targetRefs": [{ "kind": "Service", "name": "back" }] })),
            authentication("weft-system/a", 1, json!({})),
            authorization("weft-system/a", 1, json!({ "action": "Allow" })),
            requests("weft-system/a", 1, json!({ "issuers": [] })),
            trust_domain("weft-system/a", 1, json!({}), json!(null)),
        ]);
        let space = index.space("weft-system").unwrap();
        let mut kinds = BTreeSet::new();
        for view in space.resources() {
            let api = (view.api)();
            assert_eq!((&*api.api_version, &*api.kind), (weft_crds::API_VERSION, view.kind));
            assert!(view.verdict.is_some(), "{}", view.kind);
            assert!(kinds.insert(view.kind), "{} is there twice", view.kind);
        }
        let all = weft_crds::manifest::all().unwrap();
        assert_eq!(kinds, all.iter().filter_map(|(_, crd)| crd["spec"]["names"]["kind"].as_str()).collect());
        assert!(!space.unruled());
    }
}
