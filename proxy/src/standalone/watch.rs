//! Notices that files have changed, by looking at them now and then: that also works for mounts into containers and for
//! links that are switched over, which inotify(7) does not tell of. A change counts once it has stood still for one look,
//! so that no half-written file is read. It reads nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often. A look is one stat(2) for each file.
const EVERY: Duration = Duration::from_millis(250);

/// The files, and what they looked like.
#[derive(Debug)]
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    taken: Vec<Look>,
    last: Vec<Look>,
}

/// Nothing: it is not there. Else its device, inode, size and time of change.
type Look = Option<(u64, u64, u64, i64, i64)>;

impl Watch {
    /// From now on.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let looks = look(&paths);
        Self { paths, taken: looks.clone(), last: looks }
    }

    /// Other files from now on; changes to those that stay are not missed.
    pub(super) fn retarget(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            *self = Self::new(paths);
        }
    }

    /// Waits for a change to any of them. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.has_settled() {
                return;
            }
        }
    }

    fn has_settled(&mut self) -> bool {
        let now = look(&self.paths);
        let settled = now == self.last && now != self.taken;
        self.last.clone_from(&now);
        if settled {
            self.taken = now;
        }
        settled
    }
}

fn look(paths: &[PathBuf]) -> Vec<Look> {
    let of = |path: &PathBuf| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    paths.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_and_when_it_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weft.yaml");
        fs::write(&path, "a").unwrap();
        let mut watch = Watch::new(vec![path.clone()]);
        assert!(!watch.has_settled());
        fs::write(&path, "ab").unwrap();
        assert!(!watch.has_settled());
        fs::write(&path, "abc").unwrap();
        assert!(!watch.has_settled());
        assert!(watch.has_settled() && !watch.has_settled());
        // Replaced by another file, as editors and Kubernetes do.
        fs::write(dir.path().join("new"), "xyz").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(!watch.has_settled() && watch.has_settled());
        fs::remove_file(&path).unwrap();
        assert!(!watch.has_settled() && watch.has_settled());
    }
}
