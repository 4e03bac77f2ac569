//! Puts what the files say in force, at the start and whenever one changes: all of it, or nothing and every mistake is
//! told. The one writer of snapshot, certificate and listeners. It serves nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::timeout;
use weft_api::Identity;

use super::certificate::Material;
use super::file::{File, IdentityFiles};
use super::plan::{self, Plan};
use super::read::{self, MAX_SIZE};
use super::sockets::{Held, Sockets};
use super::watch::Watch;
use crate::admin::Admin;
use crate::dial::chain;
use crate::dns::{Found, Names};
use crate::listener::{Change, Key};
use crate::snapshot::Snapshot;

/// How long new names may take to be resolved before what is known counts.
pub(super) const RESOLVED: Duration = Duration::from_secs(5);

/// The files as they are in force.
pub(super) struct Live {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) admin: Arc<Admin>,
    pub(super) sockets: Arc<Mutex<Sockets>>,
    pub(super) controls: Vec<mpsc::Sender<Change>>,
    pub(super) names: Names,
    pub(super) version: u64,
}

/// A file and a certificate that fit each other.
pub(super) struct Loaded {
    pub(super) file: File,
    pub(super) certificate: Option<Material>,
}

/// Reads and judges the files, as far as that goes without names resolved.
pub(super) fn load(path: &Path) -> Result<Loaded, Vec<String>> {
    let unreadable = |error| vec![format!("{} cannot be read: {error}", path.display())];
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_SIZE {
        return Err(vec![format!("{} is larger than 4 MiB", path.display())]);
    }
    let mut file = read::parse(&fs::read_to_string(path).map_err(unreadable)?)?;
    if let (Some(files), Some(dir)) = (&mut file.identity, path.parent()) {
        // Beside the file that names them, from wherever the proxy was started.
        for each in files.paths_mut() {
            *each = dir.join(&*each);
        }
    }
    let mut problems = Vec::new();
    let certificate = file
        .identity
        .as_ref()
        .and_then(|files| Material::read(files).map_err(|mut unusable| problems.append(&mut unusable)).ok());
    let own = certificate.as_ref().map(Material::identity);
    // Without a certificate, whether it should be there cannot be judged.
    if problems.is_empty()
        && let Err(mut mistakes) = plan::plan(&file, &Found::default(), own, &Snapshot::default())
    {
        problems.append(&mut mistakes);
    }
    if problems.is_empty() { Ok(Loaded { file, certificate }) } else { Err(problems) }
}

/// The files to look at.
pub(super) fn files(path: &Path, file: &File) -> Vec<PathBuf> {
    let identity = file.identity.iter().flat_map(IdentityFiles::paths);
    identity.cloned().chain([path.to_owned()]).collect()
}

impl Live {
    /// Follows files, names and SIGHUP, for ever.
    pub(super) async fn run(mut self, mut hangup: Signal) {
        let mut watch = Watch::new(files(&self.path, &self.file));
        let mut found = self.names.changes();
        // Whatever has changed since it was read at the start.
        found.mark_changed();
        loop {
            tokio::select! {
                () = watch.changed() => self.reload().await,
                _ = hangup.recv() => self.reload().await,
                Ok(()) = found.changed() => self.resolved(),
            }
            watch.retarget(files(&self.path, &self.file));
        }
    }

    async fn reload(&mut self) {
        let path = self.path.clone();
        // On the thread for blocking work: a file on a network may take its time.
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        let outcome = match loaded {
            Ok(Ok(loaded)) => self.take(loaded).await,
            Ok(Err(problems)) => Err(problems),
            Err(error) => Err(vec![error.to_string()]),
        };
        if let Err(problems) = outcome {
            for problem in &problems {
                tracing::error!(file = %self.path.display(), %problem, "configuration refused, the last good one stays");
            }
            self.admin.status.reloaded(Err(problems.join("; ")));
        }
    }

    async fn take(&mut self, loaded: Loaded) -> Result<(), Vec<String>> {
        let Loaded { file, certificate } = loaded;
        self.judge_identity(certificate.as_ref().map(Material::identity))?;
        self.names.want(plan::names(&file));
        let _ = timeout(RESOLVED, self.names.settled()).await;
        let taken = self.put_in_force(&file, certificate);
        if taken.is_err() {
            self.names.want(plan::names(&self.file));
            return taken;
        }
        self.tell_of_restart(&file);
        if file.log != self.file.log
            && let Err(error) = self.admin.log.set(&file.log)
        {
            tracing::warn!(%error, "the log level stays");
        }
        self.file = file;
        Ok(())
    }

    fn judge_identity(&self, read: Option<&Identity>) -> Result<(), Vec<String>> {
        let own = self.admin.certified.then_some(&self.admin.identity);
        match (own, read) {
            (None, None) => Ok(()),
            (Some(own), Some(read)) if own == read => Ok(()),
            (Some(own), Some(read)) => {
                Err(vec![format!("identity: the certificate is of {read} now, but this proxy runs as {own}; restart it")])
            }
            _ => Err(vec![
                "identity: it can be given or taken away with a restart only, for who this proxy is would change".to_owned(),
            ]),
        }
    }

    fn own(&self) -> Option<&Identity> {
        self.admin.certified.then_some(&self.admin.identity)
    }

    fn put_in_force(&mut self, file: &File, certificate: Option<Material>) -> Result<(), Vec<String>> {
        let plan = plan::plan(file, &self.names.found(), self.own(), &self.admin.store.load())?;
        let bound = self.bind(&plan)?;
        if let Some(certificate) = certificate.filter(|new| !new.is_in_force(&self.admin.tls)) {
            let (identity, serial) = (certificate.identity().clone(), certificate.leaf.serial.clone());
            let not_after = certificate.leaf.not_after;
            certificate
                .apply(&self.admin.tls)
                .map_err(|error| vec![format!("identity: {}", chain(&error))])?;
            self.admin.status.signed(Ok(not_after));
            tracing::info!(%identity, %serial, "certificate read");
        }
        self.publish(plan, bound);
        Ok(())
    }

    /// Sockets for listeners that are new. Before anything is changed, because that may fail.
    fn bind(&self, plan: &Plan) -> Result<BTreeMap<Key, Held>, Vec<String>> {
        let present = self.sockets().keys();
        let (mut bound, mut problems) = (BTreeMap::new(), Vec::new());
        for key in plan.listeners.keys().filter(|key| !present.contains(key)) {
            match Held::new(*key, self.controls.len(), &mut Vec::new()) {
                Ok(held) => drop(bound.insert(*key, held)),
                Err(error) => problems.push(format!(
                    "listeners.{}: cannot listen at {}: {error}",
                    key.0.as_str(),
                    key.1
                )),
            }
        }
        if problems.is_empty() { Ok(bound) } else { Err(problems) }
    }

    fn publish(&mut self, plan: Plan, bound: BTreeMap<Key, Held>) {
        let Plan { snapshot, listeners } = plan;
        let (addresses, services) = (snapshot.addresses.len(), snapshot.services.len());
        self.admin.store.publish(snapshot);
        self.version += 1;
        self.admin.status.updated(self.version, 0, addresses, services);
        self.admin.status.reloaded(Ok(()));
        tracing::info!(
            version = self.version,
            services,
            listeners = listeners.len(),
            "configuration applied"
        );
        self.relisten(&listeners, bound);
    }

    fn relisten(&self, listeners: &BTreeMap<Key, Option<SocketAddr>>, bound: BTreeMap<Key, Held>) {
        let mut sockets = self.sockets();
        let new: Vec<Key> = bound.keys().copied().collect();
        for (key, held) in bound {
            sockets.insert(key, held);
        }
        for (key, destination) in listeners {
            sockets.aim(key, *destination);
        }
        for key in new {
            match sockets.of(&key, self.controls.len()) {
                Ok(lists) => {
                    for (control, listening) in self.controls.iter().zip(lists) {
                        listening.into_iter().for_each(|one| tell(control, Change::Open(one)));
                    }
                }
                Err(error) => tracing::error!(address = %key.1, %error, "cannot listen"),
            }
        }
        for key in sockets.keys().iter().filter(|key| !listeners.contains_key(key)) {
            sockets.remove(key);
            self.controls.iter().for_each(|control| tell(control, Change::Close(*key)));
        }
    }

    fn resolved(&mut self) {
        let file = self.file.clone();
        match plan::plan(&file, &self.names.found(), self.own(), &self.admin.store.load()) {
            Ok(plan) => self.publish(plan, BTreeMap::new()),
            Err(problems) => tracing::error!(?problems, "resolved names could not be applied"),
        }
    }

    fn tell_of_restart(&self, file: &File) {
        let differ = [
            ("admin", file.admin != self.file.admin),
            ("metrics", file.metrics != self.file.metrics),
            ("workers", file.workers != self.file.workers),
            ("accessLog", file.access_log != self.file.access_log),
            ("tracing", file.tracing != self.file.tracing),
            ("drainTimeout", file.drain_timeout != self.file.drain_timeout),
            ("maxConnections", file.max_connections != self.file.max_connections),
            ("memoryLimit", file.memory_limit != self.file.memory_limit),
            ("restartSocket", file.restart_socket != self.file.restart_socket),
            ("dns", file.dns != self.file.dns),
        ];
        let fields: Vec<&str> =
            differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        if !fields.is_empty() {
            tracing::warn!(?fields, "these take effect with the next restart");
        }
    }

    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(control: &mpsc::Sender<Change>, change: Change) {
    if control.try_send(change).is_err() {
        tracing::error!("a worker takes no changes of listeners");
    }
}
