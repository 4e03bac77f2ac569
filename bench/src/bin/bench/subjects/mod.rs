//! What is measured: each subject is told the same about a hop, and turns it into its own configuration and command. No
//! subject gets a hint that another of its kind could not use as well.

mod envoy;
mod haproxy;
mod nginx;
mod relay;
mod weft;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use weft_bench::certificates::{Authority, Files};

use crate::child::Process;
use crate::ports::address;
use crate::sink::Sink;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Subject {
    /// No proxy: clients connect to the origin.
    None,
    /// This repository's.
    Weft,
    /// Envoy; between two hops it speaks what the client speaks, which is Istio's default (`h2UpgradePolicy`).
    Envoy,
    /// Envoy with HTTP/2 between two hops whatever the client speaks, as with Istio's `h2UpgradePolicy: UPGRADE`.
    EnvoyH2,
    /// Debian's nginx.
    Nginx,
    /// Debian's haproxy.
    Haproxy,
    /// The floor: passes bytes on, sealed between two hops, and understands nothing (`weft-bench-relay`).
    Relay,
}

impl Subject {
    /// As in tables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Weft => "weft",
            Self::Envoy => "envoy",
            Self::EnvoyH2 => "envoy-h2",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Relay => "relay",
        }
    }

    /// What it calls itself, in a line.
    pub fn version(self, programs: &Programs) -> Result<String> {
        let (program, flag) = match self {
            Self::None | Self::Relay => return Ok("-".to_owned()),
            Self::Weft => (&programs.weft, "--version"),
            Self::Envoy | Self::EnvoyH2 => (&programs.envoy, "--version"),
            Self::Nginx => (&programs.nginx, "-v"),
            Self::Haproxy => (&programs.haproxy, "-v"),
        };
        let output = Command::new(program)
            .arg(flag)
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let text = [output.stdout, output.stderr].concat();
        let line =
            String::from_utf8_lossy(&text).lines().find(|line| !line.trim().is_empty()).map(str::to_owned);
        Ok(line.unwrap_or_default().trim().to_owned())
    }

    /// Whether measuring it says anything.
    #[must_use]
    pub fn fits(self, task: &Task) -> bool {
        match self {
            // It differs from Envoy only between two hops, and where clients do not speak HTTP/2 themselves.
            Self::EnvoyH2 => task.hops == 2 && task.speaks == Speaks::Http1,
            // It shakes no hands, and does nothing besides.
            Self::Relay => task.enters == Wire::Plain && task.extra == Extra::Nothing,
            _ => true,
        }
    }

    /// Whether it can tell of traces as it is built.
    fn traces(self) -> bool {
        matches!(self, Self::Weft | Self::Envoy | Self::EnvoyH2)
    }

    fn command(self, hop: &Hop<'_>, programs: &Programs) -> Result<Command> {
        match self {
            Self::None => anyhow::bail!("no proxy has no process"),
            Self::Weft => weft::command(hop, &programs.weft),
            Self::Envoy => envoy::command(hop, &programs.envoy, false),
            Self::EnvoyH2 => envoy::command(hop, &programs.envoy, true),
            Self::Nginx => nginx::command(hop, &programs.nginx),
            Self::Haproxy => haproxy::command(hop, &programs.haproxy),
            Self::Relay => relay::command(hop),
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug, clap::Args)]
pub struct Programs {
    /// The proxy's program, built for release.
    #[arg(long = "proxy")]
    pub weft: PathBuf,
    /// Envoy's program.
    #[arg(long, default_value = "envoy")]
    pub envoy: PathBuf,
    /// nginx's program.
    #[arg(long, default_value = "/usr/sbin/nginx")]
    pub nginx: PathBuf,
    /// haproxy's program.
    #[arg(long, default_value = "/usr/sbin/haproxy")]
    pub haproxy: PathBuf,
}

/// What proxies are started for.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// 1 or 2; between two there is mTLS.
    pub hops: usize,
    /// How clients call the first one.
    pub enters: Wire,
    /// What the clients and the origin speak.
    pub speaks: Speaks,
    /// Clients' connections at the same time.
    pub connections: usize,
    /// What proxies do besides passing on.
    pub extra: Extra,
}

/// What proxies do besides passing on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// As little as each can.
    Nothing,
    /// The first proxy has [`ROUTES`] of them: `/r0/` and so on, each to the same place.
    Routes,
    /// Retries, limits, authorisation and tracing where a subject has them, access log.
    Everything,
}

/// Of [`Extra::Routes`].
pub const ROUTES: usize = 100;
/// Requests a second that limits of [`Extra::Everything`] allow: they count, and refuse nothing.
const LIMIT: u32 = 1_000_000;
/// Percent of requests that are traced with [`Extra::Everything`].
const TRACED: u32 = 1;

/// What clients and origins speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// The same, and gRPC on it.
    Grpc,
    /// Bytes that are nobody's business.
    Tcp,
}

/// What is on a connection besides that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Plain,
    /// TLS 1.3 with certificates on both sides, verified.
    Mtls,
}

/// One proxy's place.
pub struct Hop<'a> {
    /// Its files go here.
    pub directory: &'a Path,
    /// Whose certificates these are.
    pub certificates: &'a Certificates,
    /// What for.
    pub task: Task,
    /// Where it listens.
    pub listen: SocketAddr,
    /// How it is called.
    pub accepts: Wire,
    /// Where it sends to: another proxy or the origin.
    pub next: SocketAddr,
    /// How it calls.
    pub calls: Wire,
    /// Whether it is the one that clients call.
    pub first: bool,
    /// Where it tells of traces, when it does everything.
    pub sink: Option<SocketAddr>,
}

impl Hop<'_> {
    /// Paths of routes, where it has them.
    fn routes(&self) -> impl Iterator<Item = String> {
        let count = if self.first && self.task.extra == Extra::Routes { ROUTES } else { 0 };
        (0..count).map(|route| format!("/r{route}/"))
    }

    /// Whether it does everything.
    fn everything(&self) -> bool {
        self.task.extra == Extra::Everything
    }

    /// Writes one of its files.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// For everybody, of one root.
pub struct Certificates {
    /// Of the calling side, by its SPIFFE id.
    pub front: Files,
    /// Of the called side, by its SPIFFE id.
    pub back: Files,
    /// For peers that verify DNS names only: both sides have this one.
    pub named: Files,
    /// The same with its key in one file.
    pub named_pem: PathBuf,
}

/// The name in [`Certificates::named`].
pub const NAME: &str = "bench.local";

impl Certificates {
    /// Makes them.
    pub fn new(directory: &Path) -> Result<Self> {
        let authority = Authority::new()?;
        let named = authority.issue_dns(NAME, directory)?;
        let named_pem = directory.join("named.pem");
        fs::write(&named_pem, fs::read_to_string(&named.certificate)? + &fs::read_to_string(&named.key)?)?;
        Ok(Self {
            front: authority.issue("front", directory)?,
            back: authority.issue("back", directory)?,
            named,
            named_pem,
        })
    }
}

/// One subject's proxies for a task, running.
pub struct Chain {
    /// Where clients connect to.
    pub entry: SocketAddr,
    /// Calling side first. None for no proxy.
    pub processes: Vec<Process>,
    // Ends after those who tell it.
    sink: Option<Sink>,
}

impl Chain {
    /// Starts them; they are ended when it is dropped.
    pub async fn start(
        subject: Subject,
        programs: &Programs,
        task: Task,
        certificates: &Certificates,
        origin: SocketAddr,
        work: &Path,
    ) -> Result<Self> {
        let mut chain = Self { entry: origin, processes: Vec::new(), sink: None };
        if subject == Subject::None {
            return Ok(chain);
        }
        if task.extra == Extra::Everything && subject.traces() {
            chain.sink = Some(Sink::start().await?);
        }
        for hop in (0..task.hops).rev() {
            let directory = work.join(format!("{}-{hop}", subject.name()));
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory)?;
            let hop = Hop {
                directory: &directory,
                certificates,
                task,
                listen: address()?,
                accepts: if hop == 0 { task.enters } else { Wire::Mtls },
                next: chain.entry,
                first: hop == 0,
                sink: chain.sink.as_ref().map(Sink::address),
                calls: if hop + 1 < task.hops { Wire::Mtls } else { Wire::Plain },
            };
            let log = directory.join("log");
            let mut process =
                Process::start(subject.command(&hop, programs)?, &log, task.extra == Extra::Everything)?;
            process
                .listens(hop.listen)
                .await
                .with_context(|| format!("{}; see {}", subject.name(), log.display()))?;
            chain.entry = hop.listen;
            chain.processes.insert(0, process);
        }
        Ok(chain)
    }

    /// See [`Process::cpu_ns`]; of all together.
    pub fn cpu_ns(&self) -> Result<u64> {
        self.processes.iter().map(Process::cpu_ns).sum()
    }

    /// See [`Process::rss_kib`]; of the largest one.
    pub fn rss_kib(&self) -> Result<u64> {
        self.processes.iter().try_fold(0, |most, process| Ok(most.max(process.rss_kib()?)))
    }
}
