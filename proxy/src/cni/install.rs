//! `weft-proxy cni-install`: puts the plugin on a node, keeps it there, and takes it away when Weft goes. It looks at the folder once a
//! second, because other network software writes its configuration whenever it starts. Files are replaced whole, by renaming.
//! It never makes a configuration of its own: without a network there is nothing to chain to.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::{PLUGIN, ask, chain};
use crate::logging;

const EVERY: Duration = Duration::from_secs(1);

/// Where the plugin goes.
#[derive(ClapArgs, Clone, Debug)]
pub struct Args {
    /// The node's folder of CNI plugins.
    #[arg(long, default_value = "/host/bin")]
    pub bin_dir: PathBuf,
    /// The node's folder of CNI configurations.
    #[arg(long, default_value = "/host/conf")]
    pub conf_dir: PathBuf,
    /// Only say by the exit code whether the plugin is in place.
    #[arg(long)]
    pub check: bool,
    /// The DaemonSet that this runs in. While it exists, the end of this process is a restart and the plugin stays.
    #[arg(long, default_value = PLUGIN)]
    pub daemonset: String,
}

/// Until told to end.
///
/// # Errors
/// With `--check`: it is not in place. Otherwise when there are no signals or logs to be had.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        let place = Place::new(args);
        return if place.is_in_place()? { Ok(()) } else { bail!("the plugin is not in place") };
    }
    let _log = logging::start("info").context("cannot start logging")?;
    let place = Place::new(args);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = None;
        let mut fresh = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            // What stands against that is told by the next line.
            fresh = fresh || place.put_program().is_ok();
            let outcome = place.put().map_err(|error| format!("{error:#}"));
            match &outcome {
                Ok(None) if said.as_ref().is_some_and(Result::is_err) => tracing::info!("the plugin is in place again"),
                Ok(None) => {}
                Ok(Some(file)) => tracing::info!(file = %file.display(), "the plugin is chained"),
                Err(why) if said.as_ref() != Some(&outcome) => tracing::error!(%why, "the plugin is not in place"),
                Err(_) => {}
            }
            said = Some(outcome);
        }
        match ask::daemonset(&args.daemonset).await {
            Ok((status, body)) if ask::goes(status, &body) => {
                place.remove()?;
                tracing::info!(status, "the DaemonSet is gone, and so is the plugin");
            }
            Ok((status, _)) => tracing::info!(status, "the plugin stays: its DaemonSet does"),
            Err(why) => tracing::warn!(why = %format!("{why:#}"), "the plugin stays: it is not known whether its DaemonSet does"),
        }
        Ok(())
    })
}

/// The two folders, and what belongs there.
struct Place {
    bin: PathBuf,
    conf: PathBuf,
    program: PathBuf,
}

impl Place {
    fn new(args: &Args) -> Self {
        Self {
            bin: args.bin_dir.join(PLUGIN),
            conf: args.conf_dir.clone(),
            program: PathBuf::from("/proc/self/exe"),
        }
    }

    fn put_program(&self) -> Result<()> {
        let program = fs::read(&self.program).context("cannot read the own program")?;
        replace(&self.bin, &program, 0o755)
    }

    /// The program first: a list that names one that is not there makes no pod at all. Which file was changed, if one was.
    fn put(&self) -> Result<Option<PathBuf>> {
        if !self.has_program() {
            self.put_program()?;
        }
        let (path, text) = self.first()?;
        let Some(new) = chain::chained(&text).with_context(|| path.display().to_string())? else {
            return Ok(None);
        };
        let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
        replace(&path, new.as_bytes(), mode)?;
        Ok(Some(path))
    }

    fn is_in_place(&self) -> Result<bool> {
        let (path, text) = self.first()?;
        let chained = chain::chained(&text).with_context(|| path.display().to_string())?.is_none();
        Ok(chained && self.has_program())
    }

    /// From every list, also those that another has come before. The lists first, for the same reason.
    fn remove(&self) -> Result<()> {
        for name in self.names()? {
            let path = self.conf.join(&name);
            let Ok(text) = fs::read_to_string(&path) else { continue };
            if let Ok(Some(new)) = chain::unchained(&text) {
                let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
                replace(&path, new.as_bytes(), mode)?;
            }
        }
        match fs::remove_file(&self.bin) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(self.bin.display().to_string())
            }
            _ => Ok(()),
        }
    }

    /// By its size: each start puts the program there anew, so another version of the same size does not stay.
    fn has_program(&self) -> bool {
        let whole = |found: &fs::Metadata| {
            let size = fs::metadata(&self.program).map(|own| own.len());
            size.is_ok_and(|size| size == found.len()) && found.permissions().mode() & 0o111 == 0o111
        };
        fs::metadata(&self.bin).is_ok_and(|found| whole(&found))
    }

    fn first(&self) -> Result<(PathBuf, String)> {
        let names = self.names()?;
        let Some(name) = chain::first(&names) else {
            bail!("{}: no network is configured yet", self.conf.display());
        };
        let path = self.conf.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path, text))
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.conf).with_context(|| self.conf.display().to_string())?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| chain::holds_configuration(name)).collect())
    }
}

/// Whole or not at all; the temporary name is none that a container runtime reads.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".weft-new");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file: File = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary))).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

    fn node() -> (TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "conf"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("program"), "program").unwrap();
        let place = Place {
            bin: dir.path().join("bin").join(PLUGIN),
            conf: dir.path().join("conf"),
            program: dir.path().join("program"),
        };
        (dir, place)
    }

    fn left(place: &Place) -> Vec<String> {
        let both = [place.bin.parent().unwrap(), place.conf.as_path()];
        let mut names: Vec<_> = both
            .iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn it_is_put_there_once_put_back_when_somebody_takes_it_away_and_leaves_nothing() {
        let (_dir, place) = node();
        let list = place.conf.join("10-net.conflist");
        fs::write(&list, LIST).unwrap();
        fs::set_permissions(&list, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!place.is_in_place().unwrap());
        assert_eq!(place.put().unwrap(), Some(list.clone()));
        assert!(place.is_in_place().unwrap());
        assert_eq!(place.put().unwrap(), None, "nothing is written when nothing has changed");
        assert_eq!(fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&place.bin).unwrap().permissions().mode() & 0o777, 0o755);

        fs::write(&list, LIST).unwrap();
        assert!(place.put().unwrap().is_some(), "another one has written its configuration anew");
        fs::remove_file(&place.bin).unwrap();
        assert!(!place.is_in_place().unwrap());
        place.put().unwrap();
        // Another network comes first from now on; the old list is cleaned all the same.
        fs::write(place.conf.join("05-new.conflist"), LIST).unwrap();
        assert!(place.put().unwrap().unwrap().ends_with("05-new.conflist"));

        place.remove().unwrap();
        assert_eq!(left(&place), ["05-new.conflist", "10-net.conflist"]);
        for name in left(&place) {
            let text = fs::read_to_string(place.conf.join(name)).unwrap();
            assert!(!text.contains(PLUGIN), "{text}");
        }
        place.remove().unwrap();
    }

    #[test]
    fn what_cannot_be_chained_to_is_an_error_that_names_it_and_stays_as_it_is() {
        let (_dir, place) = node();
        assert!(place.put().unwrap_err().to_string().contains("no network is configured yet"));
        for text in [r#"{"type": "bridge"}"#, r#"{"plugins": ["#] {
            fs::write(place.conf.join("10-net.conf"), text).unwrap();
            let error = format!("{:#}", place.put().unwrap_err());
            assert!(error.contains("10-net.conf"), "{error}");
            assert_eq!(fs::read_to_string(place.conf.join("10-net.conf")).unwrap(), text);
        }
        assert_eq!(left(&place), ["10-net.conf", PLUGIN]);
    }
}
