//! What only works where the cluster's nodes run on this machine (the own cluster, or kind with root): the processes of a pod,
//! their memory, and the packets that cross its network interface. Reads only; it changes nothing in a pod.

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Most bytes that a capture keeps.
const CAPTURE_LIMIT: usize = 256 << 20;
/// The loopback device is the first one of every network namespace.
const LOOPBACK: usize = 1;

/// Process ids of a pod's containers.
pub fn processes(pod: &Value) -> Result<Vec<u32>> {
    let uid = pod["metadata"]["uid"].as_str().context("the pod has no uid")?;
    let spellings = [uid.to_owned(), uid.replace('-', "_")];
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while we look.
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if spellings.iter().any(|s| groups.contains(s.as_str())) {
            found.push(pid);
        }
    }
    if found.is_empty() {
        bail!(
            "no process of pod {} runs on this machine; this needs root on the machine of the node",
            pod["metadata"]["name"]
        );
    }
    Ok(found)
}

/// The process of a pod whose command line begins with `program`.
pub fn process(pod: &Value, program: &str) -> Result<u32> {
    processes(pod)?
        .into_iter()
        .find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().starts_with(program.as_bytes())
        })
        .with_context(|| format!("pod {} runs no {program}", pod["metadata"]["name"]))
}

/// Resident memory of a process, in bytes.
pub fn resident_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Runs `work` on a thread inside the pod's network.
pub fn inside_network<T: Send + 'static>(
    pod: &Value,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let pid = *processes(pod)?.first().context("no process")?;
    let network = File::open(format!("/proc/{pid}/ns/net")).context("opening the pod's network namespace")?;
    Ok(std::thread::spawn(move || {
        setns(&network, CloneFlags::CLONE_NEWNET).context("entering the pod's network (needs root)")?;
        work()
    }))
}

/// The frames that crossed a pod's interfaces, loopback excepted.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Vec<u8>>>>,
}

impl Capture {
    /// Starts to capture; frames from now on are kept.
    pub fn start(pod: &Value) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (listening, is_listening) = std::sync::mpsc::channel();
        let thread = inside_network(pod, move || {
            let fd =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .context("opening a packet socket (needs root)")?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
            setsockopt(&fd, sockopt::RcvBuf, &(32 << 20))?;
            let _ = listening.send(());
            let (mut frames, mut kept, mut buffer) = (Vec::new(), 0, vec![0; 128 << 10]);
            while !stopped.load(Ordering::Relaxed) {
                match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
                    Ok((length, from)) if from.as_ref().is_none_or(|a| a.ifindex() != LOOPBACK) => {
                        kept += length;
                        if kept > CAPTURE_LIMIT {
                            bail!("more than {CAPTURE_LIMIT} bytes captured");
                        }
                        frames.push(buffer[..length].to_vec());
                    }
                    Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                    Err(error) => return Err(error).context("capturing"),
                }
            }
            Ok(frames)
        })?;
        // When the thread failed instead, `finish` tells why.
        let _ = is_listening.recv();
        Ok(Self { stop, thread })
    }

    /// Stops; what was seen.
    pub fn finish(self) -> Result<Frames> {
        std::thread::sleep(std::time::Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(frames) => frames.map(Frames),
            Err(_) => bail!("the capturing thread panicked"),
        }
    }
}

/// Captured frames.
#[derive(Debug)]
pub struct Frames(Vec<Vec<u8>>);

impl Frames {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Their bytes, headers included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// How many contain this text as it stands.
    #[must_use]
    pub fn containing(&self, text: &str) -> usize {
        self.0.iter().filter(|frame| frame.windows(text.len()).any(|w| w == text.as_bytes())).count()
    }

    /// How many carry a TLS record of a handshake (a ClientHello or ServerHello) at the start of their TCP payload.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        self.0
            .iter()
            .filter(|frame| payload(frame).is_some_and(|p| p.len() > 5 && p[0] == 0x16 && p[1] == 3))
            .count()
    }
}

/// The TCP payload of an Ethernet frame with IPv4.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let ip = frame.get(14..)?;
    if frame.get(12..14)? != [8, 0] || *ip.get(9)? != 6 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    let tcp = ip.get(usize::from(ip.first()? & 15) * 4..length.min(ip.len()))?;
    tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_of_a_frame_is_found_and_short_frames_are_harmless() {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0; 12]);
        frame.extend([0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend([0x16, 3, 1, 0, 9, 1]);
        frame.extend([0; 4]); // Ethernet padding
        assert_eq!(payload(&frame), Some(&[0x16, 3, 1, 0, 9, 1][..]));
        for cut in 0..frame.len() {
            let _ = payload(&frame[..cut]);
        }
        let frames = Frames(vec![frame]);
        assert_eq!((frames.handshakes(), frames.count(), frames.containing("x")), (1, 1, 0));
    }
}
