//! Calls from mesh to mesh: who is let in, as whom, and what the others hear.

use anyhow::ensure;
use serde_json::json;
use weft_api::names;

use crate::meshes::meshes;

#[test]
fn who_is_named_is_let_in_by_its_own_name_and_nobody_else() {
    meshes(|meshes| {
        for (from, to) in meshes.ways() {
            to.cluster.kubectl(&[
                "delete",
                "authorizationpolicy",
                "orders",
                "-n",
                "shop",
                "--ignore-not-found",
            ])?;
            from.awaits("web", "/orders", 403, "policy-denied")?;
            // Their namespace of this name, and everybody of the own mesh.
            to.lets_in(Some(json!({ "namespaces": ["checkout"] })))?;
            from.awaits("web", "/orders", 403, "policy-denied")?;

            to.lets_in(None)?;
            let (reply, _) = from.awaits("web", "/orders", 200, "")?;
            ensure!(reply.seen_identity() == Some(&from.id("web")), "{reply}");
            from.awaits("web", "/", 403, "policy-denied")?;
            let (reply, _) = from.awaits("other", "/orders", 403, "policy-denied")?;
            println!("{} refuses {}: {}", to.domain, from.id("other"), reply.reason());
            let pod = to.cluster.await_pods("shop", "app=orders", 1)?.remove(0);
            let log = to.cluster.logs("shop", &pod, names::PROXY_CONTAINER, 200);
            let refused =
                log.lines().any(|line| line.contains("policy-denied") && line.contains(&from.id("other")));
            ensure!(refused, "the log does not tell who was refused: {log}");

            to.lets_everybody_in()?;
            let (reply, _) = from.awaits("other", "/", 200, "")?;
            ensure!(reply.seen_identity() == Some(&from.id("other")), "{reply}");
            let raw = format!("{}:7000", to.orders()?);
            let echoed = from.client("web").run(&["/testapp", "tcp", &raw, "hello"])?;
            ensure!(echoed.trim() == "hello", "{echoed}");

            from.register(to, &format!("spiffe://{}/ns/shop/sa/somebody-else", to.domain))?;
            from.awaits("web", "/orders", 503, "peer-identity-mismatch")?;
            from.register(to, &format!("spiffe://{}/ns/shop/sa/orders", to.domain))?;
            from.awaits("web", "/orders", 200, "")?;
        }
        Ok(())
    });
}
