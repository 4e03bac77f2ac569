//! Network namespaces for tests: a thread each, and a pod and its peer joined by a veth. Needs root.

use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};

type Work = Box<dyn FnOnce() + Send>;

/// A thread that lives in a network namespace of its own, and does there what it is told.
pub struct Namespace {
    tid: i32,
    work: Sender<(Work, Sender<bool>)>,
}

impl Namespace {
    pub fn new() -> Self {
        let (work, todo): (_, Receiver<(Work, Sender<bool>)>) = channel();
        let (started, wait) = channel();
        std::thread::spawn(move || {
            // SAFETY: plain system calls on the calling thread.
            let (done, tid) = unsafe { (libc::unshare(libc::CLONE_NEWNET), libc::gettid()) };
            assert_eq!(done, 0, "unshare: {}", std::io::Error::last_os_error());
            started.send(tid).unwrap();
            while let Ok((work, answer)) = todo.recv() {
                let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_ok();
                let _ = answer.send(ok);
            }
        });
        Self { tid: wait.recv().unwrap(), work }
    }

    /// The thread, by which others find the namespace.
    #[allow(dead_code, reason = "not every test enters from outside")]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        let (answer, done) = channel();
        self.work.send((Box::new(work), answer)).unwrap();
        assert!(done.recv().unwrap(), "failed inside the namespace, see above");
    }
}

pub fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// A pod at 10.77.0.1 / fd77::1 and its peer at .2.
pub fn pod_and_peer() -> Option<(Namespace, Namespace)> {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    let (pod, peer) = (Namespace::new(), Namespace::new());
    let peer_tid = peer.tid;
    pod.run(move || {
        ip("link set lo up");
        ip(&format!("link add eth0 type veth peer name eth0 netns {peer_tid}"));
        ip("addr add 10.77.0.1/24 dev eth0");
        ip("-6 addr add fd77::1/64 dev eth0 nodad");
        ip("link set eth0 up");
    });
    peer.run(|| {
        ip("link set lo up");
        ip("addr add 10.77.0.2/24 dev eth0");
        ip("-6 addr add fd77::2/64 dev eth0 nodad");
        ip("link set eth0 up");
    });
    Some((pod, peer))
}
