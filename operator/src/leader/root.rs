//! Writes the root back when somebody deletes its Secret: without it the next start would make another root, and nobody
//! would trust anybody.

use std::time::Duration;

use tokio::time::sleep;
use weft_api::names;

use super::Leader;
use super::events::{About, Events};
use crate::ca::secret;
use crate::index::Key;

const RETRY: Duration = Duration::from_secs(1);

/// Keeps the Secret there for ever.
pub async fn keep(leader: Leader, events: Events) {
    let mut missing = leader.root_missing.clone();
    loop {
        if missing.wait_for(|missing| *missing).await.is_err() {
            return;
        }
        let roots = leader.shared.authority.roots();
        match secret::restore(leader.writer.clone(), &leader.settings.namespace, &roots).await {
            Ok(restored) => {
                if restored {
                    tracing::warn!("Secret {} was deleted: restored it from memory", names::CA_SECRET);
                    let about = About {
                        version: "v1",
                        kind: "Secret",
                        key: Key::new(&leader.settings.namespace, names::CA_SECRET),
                        uid: String::new(),
                    };
                    let note = "the Secret with the root certificate and key was deleted; the operator restored it from memory";
                    events.write(&about, true, "RootRestored", "Restore", note).await;
                }
                // The watch says so too, a moment later.
                if missing.wait_for(|missing| !*missing).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "cannot restore Secret {}; trying again", names::CA_SECRET);
                sleep(RETRY).await;
            }
        }
    }
}
