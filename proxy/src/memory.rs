//! How much memory there is, and whether it is short: the control group's limit, read at the start, and what the process
//! holds, looked at now and then. Short begins above one mark and ends below a lower one, so that it does not flutter.
//! What is done about it is `shed`'s.

use std::fs;
use std::path::{Path, PathBuf};

/// Above this share of the limit memory is short. The rest is for what is under way: a request holds up to 64 KiB for
/// being sent again, and a connection up to two buffers of 64 KiB.
const HIGH_PERCENT: u64 = 90;
/// And below this it is not any more.
const LOW_PERCENT: u64 = 80;
/// A v1 group without a limit says a number near 2^63.
const UNLIMITED: u64 = 1 << 50;

/// The least limit of the process's control group and of those around it, in bytes. `None`: there is none.
#[must_use]
pub fn limit_of_group() -> Option<u64> {
    limit(|path| fs::read_to_string(path).ok())
}

/// cgroups(7): "hierarchy:controllers:path" a line; v2 is hierarchy 0. Inside of a container the path may be one that
/// exists outside only, so that each part of it up to the root is looked at.
fn limit(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    groups
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            match (number, controllers) {
                ("0", "") => Some(("/sys/fs/cgroup", "memory.max", path)),
                (_, list) if list.split(',').any(|name| name == "memory") => {
                    Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path))
                }
                _ => None,
            }
        })
        .flat_map(|(root, file, path)| {
            let below = PathBuf::from(path.trim_start_matches('/'));
            let parts: Vec<PathBuf> =
                below.ancestors().map(|part| Path::new(root).join(part).join(file)).collect();
            parts
        })
        .filter_map(|file| read(&file)?.trim().parse::<u64>().ok())
        .filter(|bytes| *bytes < UNLIMITED)
        .min()
}

/// What the process holds in memory, in bytes (proc(5), `statm`: the second number, in pages).
#[must_use]
pub fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: asks for a constant of the system.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    pages.checked_mul(page)
}

/// Gives freed memory back to the system, as far as the allocator keeps it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and may be called from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of the program's code, most of which only the start, or a burst, has needed. What runs from now on comes
/// back from the page cache as it is needed. Code is never written to, so nothing is lost: constants and tables stay, because some of
/// them were changed when the program was loaded (relocations).
pub fn forget_code() {
    #[cfg(target_os = "linux")]
    if let Some((from, to)) = fs::read_to_string("/proc/self/maps").ok().and_then(|maps| code(&maps)) {
        // SAFETY: a mapping of this process that is private, of a file, executable and not writable (proc(5)); dropped pages
        // of such a one are read from the file again when they are touched (madvise(2), MADV_DONTNEED).
        unsafe {
            libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED);
        }
    }
}

/// The addresses of the mapping that holds this very function, if it is of the kind above.
fn code(maps: &str) -> Option<(usize, usize)> {
    let here = code as fn(&str) -> Option<(usize, usize)> as usize;
    maps.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        let of_file = words.next()? == "r-xp" && words.next_back()?.starts_with('/');
        (of_file && (from..to).contains(&here)).then_some((from, to))
    })
}

/// Notices when there may be memory that the allocator keeps for nothing: many connections have ended, or a time of coming and
/// going is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tide {
    high: usize,
    last: usize,
    // Looks in a row that saw as many as the one before; `None` when there was nothing to settle.
    calm: Option<u32>,
}

impl Tide {
    /// Fewer than this are not worth the work at once.
    const MANY: usize = 100;
    /// After so many looks without a change it is calm.
    const CALM: u32 = 10;

    /// With how many are open now, looked at every now and then. True: once, when most of those at the highest point are gone,
    /// and once when nothing has come or gone for a while.
    pub fn has_gone_out(&mut self, open: usize) -> bool {
        if open != self.last {
            self.last = open;
            self.calm = Some(0);
        } else if let Some(looks) = &mut self.calm {
            *looks += 1;
            if *looks == Self::CALM {
                *self = Self { high: open, last: open, calm: None };
                return true;
            }
        }
        if open >= self.high {
            self.high = open;
            return false;
        }
        let gone = self.high - open;
        let out = gone >= Self::MANY && gone * 2 >= self.high;
        if out {
            self.high = open;
        }
        out
    }
}

/// Whether memory is short after it was or was not.
#[must_use]
pub const fn is_short(limit: u64, resident: u64, was: bool) -> bool {
    let mark = if was { LOW_PERCENT } else { HIGH_PERCENT };
    resident > limit / 100 * mark
}

/// A number of bytes: `67108864`, `64Mi`, `1Gi`.
///
/// # Errors
/// A sentence.
pub fn quantity(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a number of bytes such as 67108864, 64Mi or 1Gi");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => return Err(wrong()),
    };
    let count: u64 = count.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(files: &[(&str, &str)]) -> Option<u64> {
        limit(|path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_least_limit_around_counts_in_both_versions() {
        let v2 = [
            ("/proc/self/cgroup", "0::/pod/proxy\n"),
            ("/sys/fs/cgroup/pod/proxy/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "67108864\n"),
            ("/sys/fs/cgroup/memory.max", "134217728\n"),
        ];
        assert_eq!(of(&v2), Some(64 << 20));
        // A container's own view: the path is of outside.
        let inside = [("/proc/self/cgroup", "0::/../elsewhere\n"), ("/sys/fs/cgroup/memory.max", "1048576")];
        assert_eq!(of(&inside), Some(1 << 20));
        let v1 = [
            ("/proc/self/cgroup", "7:cpu,cpuacct:/x\n5:memory:/pod\n1:name=systemd:/\n"),
            ("/sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "33554432\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(of(&v1), Some(32 << 20));
        assert_eq!(of(&v1[..1]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn memory_is_short_above_one_mark_until_below_another() {
        let mut was = false;
        let seen: Vec<bool> = [89, 91, 85, 81, 80, 85, 95]
            .into_iter()
            .map(|resident| {
                was = is_short(1000, resident * 10, was);
                was
            })
            .collect();
        assert_eq!(seen, [false, true, true, true, false, false, true]);
    }

    #[test]
    fn this_process_holds_something() {
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = quantity(&text);
            let _ = of(&[("/proc/self/cgroup", &text)]);
        }
    }

    #[test]
    fn quantities_have_units() {
        assert_eq!(quantity("64Mi"), Ok(64 << 20));
        assert_eq!(quantity("1024"), Ok(1024));
        for bad in ["", "0", "1MB", "Mi", "99999999999Gi", "-1"] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_is_given_back_once_after_each_burst_and_not_for_a_few() {
        let mut tide = Tide::default();
        let seen: Vec<bool> =
            [10, 1000, 900, 501, 500, 400, 350, 1, 90, 3].map(|open| tide.has_gone_out(open)).to_vec();
        let wanted = [false, false, false, false, true, false, false, true, false, false];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn calm_after_coming_and_going_is_noticed_once() {
        let mut tide = Tide::default();
        assert!((0..100).all(|_| !tide.has_gone_out(0)), "nothing has happened");
        for open in [1, 2, 3, 2] {
            assert!(!tide.has_gone_out(open));
        }
        let seen: Vec<u32> = (1..100).filter(|_| tide.has_gone_out(2)).collect();
        assert_eq!(seen, [Tide::CALM]);
        assert!(!tide.has_gone_out(0));
        assert_eq!((1..100).filter(|_| tide.has_gone_out(0)).count(), 1);
    }

    #[test]
    fn code_is_found_among_the_mappings_and_nothing_else_is_taken_for_it() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let (from, to) = code(&maps).unwrap();
        assert!(from < to);
        let here = format!("{from:x}-{to:x}");
        for other in [
            format!("{here} r-xp 00000000 00:00 0"),
            format!("{here} rwxp 00001000 fe:01 7 /bin/weft-proxy"),
            format!("{here} r--p 00001000 fe:01 7 /bin/weft-proxy"),
            "1000-2000 r-xp 00001000 fe:01 7 /bin/weft-proxy".to_owned(),
            "nonsense".to_owned(),
        ] {
            assert_eq!(code(&other), None, "{other}");
        }
        assert_eq!(code(&format!("{here} r-xp 00001000 fe:01 7 /bin/weft-proxy")), Some((from, to)));
        forget_code();
    }
}
