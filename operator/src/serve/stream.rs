//! `Config.Stream`: one task for each proxy. Checks who it is, then answers its subscriptions and pushes what changes,
//! coalesced. What to send is decided in `session`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_api::v1::{Decisions, FromProxy, Hello, from_proxy::Message};

use super::Shared;
use super::decisions;
use super::fleet::Member;
use super::limits::Seat;
use super::peer::{Peer, peer};
use super::session::Session;
use super::wire::Update;
use crate::index::Key;
use crate::keys::MAX_SETS;
use crate::store::{Mailbox, View};

/// A connection that says nothing is not a proxy.
const HELLO: Duration = Duration::from_secs(10);
/// How long a new pod may take to appear in the index.
const POD: Duration = Duration::from_secs(10);
const POD_POLL: Duration = Duration::from_millis(20);
/// A change after a while of calm goes out at once; those that come so soon after one that went out go together.
const COALESCE: Duration = Duration::from_millis(3);
/// A proxy that does not read is cut off; it comes back and gets everything anew.
const SEND: Duration = Duration::from_secs(30);
/// A proxy reports decisions every ten seconds; what comes sooner is only counted.
const DECISIONS: Duration = Duration::from_secs(5);
/// Messages on their way to one proxy.
const QUEUE: usize = 4;

type Outgoing = mpsc::Sender<Result<Update, Status>>;

/// The service.
pub struct Streams {
    shared: Arc<Shared>,
}

impl Streams {
    pub const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Serves one proxy, in a task of its own.
    pub fn stream(
        &self,
        request: Request<Streaming<FromProxy>>,
    ) -> Result<Response<ReceiverStream<Result<Update, Status>>>, Status> {
        let caller = peer(&request).inspect_err(|_| {
            self.shared.metrics.streams_refused.inc();
        })?;
        let (outgoing, messages) = mpsc::channel(QUEUE);
        let shared = Arc::clone(&self.shared);
        let incoming = request.into_inner();
        self.shared.tasks.spawn(async move {
            if let Err(status) = serve(&shared, caller, incoming, &outgoing).await {
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Until the proxy goes (`Ok`), or is sent away.
async fn serve(
    shared: &Arc<Shared>,
    caller: Peer,
    mut incoming: Streaming<FromProxy>,
    outgoing: &Outgoing,
) -> Result<(), Status> {
    let greeted = tokio::select! {
        () = shared.stop.cancelled() => return Err(stopping()),
        greeted = greet(shared, &caller, &mut incoming) => greeted,
    };
    let hello = greeted.inspect_err(|status| {
        shared.metrics.streams_refused.inc();
        tracing::warn!(caller = %caller.identity, why = status.message(), "refused a configuration stream");
    })?;
    let pod = Key::new(hello.namespace, hello.pod);
    tracing::info!(%pod, version = hello.version, "proxy connected");

    let number = shared.store.session();
    let Some(member) = shared.fleet.enter(number, pod.clone()) else {
        shared.metrics.streams_refused.inc();
        tracing::warn!(%pod, "refused one more configuration stream of a pod");
        return Err(Status::resource_exhausted(format!("pod {pod} has too many streams")));
    };
    let mut stream = Subscriber {
        member,
        seat: shared.limits.enter(number, pod.clone()),
        session: Session::new(pod.clone()),
        mailbox: Arc::new(Mailbox::default()),
        decided: None,
        shared: Arc::clone(shared),
        number,
    };
    shared.metrics.proxies.inc();
    let ended = stream.run(&caller, &mut incoming, outgoing).await;
    shared.metrics.proxies.dec();
    shared.store.leave(number, stream.session.all_topics());
    match &ended {
        Ok(()) => tracing::info!(%pod, "proxy disconnected"),
        Err(status) => tracing::info!(%pod, why = status.message(), "configuration stream ended"),
    }
    ended
}

/// The first message, and whether it is the pod's own proxy that says it.
async fn greet(shared: &Shared, caller: &Peer, incoming: &mut Streaming<FromProxy>) -> Result<Hello, Status> {
    let first = timeout(HELLO, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came in time"))??;
    let Some(Message::Hello(hello)) = first.and_then(|m| m.message) else {
        return Err(Status::invalid_argument("the first message must be a Hello"));
    };
    let pod = Key::new(&hello.namespace, &hello.pod);
    // Cheap, and tells the index nothing: a caller may only ever name pods of its own namespace.
    if caller.identity.namespace != hello.namespace {
        return Err(Status::permission_denied(format!(
            "{} is not the identity of pod {pod}",
            caller.identity
        )));
    }
    let begin = Instant::now();
    loop {
        let identity = shared.store.view(|view| Some(view.index.identity(view.index.pod(&pod)?)));
        match identity {
            Some(identity) if identity == caller.identity => return Ok(hello),
            Some(_) => {
                return Err(Status::permission_denied(format!(
                    "{} is not the identity of pod {pod}",
                    caller.identity
                )));
            }
            None if begin.elapsed() > POD => {
                return Err(Status::not_found(format!("pod {pod} is not known (yet)")));
            }
            None => sleep(POD_POLL).await,
        }
    }
}

/// A proxy that is who it says.
struct Subscriber {
    shared: Arc<Shared>,
    number: u64,
    member: Member,
    seat: Seat,
    session: Session,
    mailbox: Arc<Mailbox>,
    /// When it reported decisions last.
    decided: Option<Instant>,
}

impl Subscriber {
    async fn run(
        &mut self,
        caller: &Peer,
        incoming: &mut Streaming<FromProxy>,
        outgoing: &Outgoing,
    ) -> Result<(), Status> {
        let expiry = caller.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let mut expired = std::pin::pin!(sleep(expiry));
        let mut roots = self.shared.authority.changes();
        let shared = Arc::clone(&self.shared);
        let mailbox = Arc::clone(&self.mailbox);

        // What it holds may be of before: it was not connected, or another replica signed for it.
        roots.borrow_and_update();
        let bundle = self.session.roots(&shared.authority.roots());
        self.send(vec![bundle], outgoing).await?;
        self.register();
        self.push(outgoing).await?;
        let mut calm = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return Err(stopping()),
                () = &mut expired => return Err(Status::unauthenticated("the client certificate has expired: connect again with a new one")),
                message = incoming.message() => match message? {
                    Some(FromProxy { message: Some(message) }) => self.hear(message, outgoing).await?,
                    Some(FromProxy { message: None }) => {}
                    None => return Ok(()),
                },
                () = mailbox.filled() => {
                    sleep_until(calm).await;
                    self.push(outgoing).await?;
                    calm = tokio::time::Instant::now() + COALESCE;
                }
                rate_shares = self.seat.granted() => {
                    let message = Update { rate_shares, ..Update::default() };
                    post(message, outgoing).await?;
                }
                changed = roots.changed() => {
                    if changed.is_err() {
                        return Err(stopping());
                    }
                    let message = self.session.roots(&shared.authority.roots());
                    self.send(vec![message], outgoing).await?;
                }
            }
        }
    }

    async fn hear(&mut self, message: Message, outgoing: &Outgoing) -> Result<(), Status> {
        match message {
            Message::Hello(_) => Err(Status::invalid_argument("a second Hello")),
            Message::Subscribe(subscribe) => {
                let shared = Arc::clone(&self.shared);
                let messages = shared
                    .store
                    .view(|view: &View<'_>| self.session.subscribe(view, &subscribe))
                    .map_err(|refusal| Status::resource_exhausted(refusal.to_string()))?;
                self.register();
                self.send(messages, outgoing).await
            }
            Message::Ack(ack) => {
                self.shared.metrics.acks.inc();
                for rejection in &ack.rejections {
                    self.shared.metrics.rejections.inc();
                    let why: String = rejection.message.chars().take(300).collect();
                    tracing::warn!(pod = %self.session.pod(), resource = rejection.resource, why, "a proxy rejected configuration");
                }
                self.session.acknowledge(&ack);
                self.tell_fleet();
                Ok(())
            }
            Message::Ejections(ejections) => {
                self.member.ejected(ejections.ejected);
                Ok(())
            }
            Message::Demands(demands) => {
                self.seat.want(demands.demands, |limit| self.session.keeps_limit(limit));
                Ok(())
            }
            Message::Checked(checked) => {
                self.member.checked(checked.unhealthy);
                Ok(())
            }
            Message::Decisions(report) => {
                self.decisions(&report);
                Ok(())
            }
            Message::KeysMissed(missed) => {
                for source in missed.key_sources.into_iter().take(MAX_SETS) {
                    if self.session.takes_keys_of(&source) {
                        self.shared.missed.note(source);
                    }
                }
                Ok(())
            }
        }
    }

    fn decisions(&mut self, report: &Decisions) {
        let (shared, now) = (&self.shared, Instant::now());
        let all = report.decisions.iter().map(|sum| sum.times);
        if self.decided.is_some_and(|last| now < last + DECISIONS) {
            shared.events.lose(all.fold(report.left_out, u64::saturating_add));
            return;
        }
        self.decided = Some(now);
        let (notes, lost) =
            shared.store.view(|view| decisions::notes(view.index, self.session.pod(), report));
        notes.into_iter().for_each(|(note, times)| shared.events.tell(note, times));
        shared.events.lose(lost);
    }

    /// Looks at what changed, and sends what is other than before.
    async fn push(&mut self, outgoing: &Outgoing) -> Result<(), Status> {
        let waiting = self.mailbox.take();
        let shared = Arc::clone(&self.shared);
        let messages = shared.store.view(|view: &View<'_>| self.session.refresh(view, &waiting.topics));
        self.register();
        let any = !messages.is_empty();
        self.send(messages, outgoing).await?;
        if let Some(since) = waiting.since.filter(|_| any) {
            self.shared.metrics.push_seconds.observe(since.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Registers for what was joined, and has it looked at once more: it may have changed in between.
    fn register(&mut self) {
        let (joined, left) = self.session.topics();
        if !left.is_empty() {
            self.shared.store.leave(self.number, &left);
        }
        if !joined.is_empty() {
            self.shared.store.join(self.number, &self.mailbox, &joined);
            self.mailbox.put(joined);
        }
    }

    /// What is in force changes far less often than endpoints do.
    fn tell_fleet(&mut self) {
        let news = self.session.news();
        if news.applied {
            self.member.applied(self.session.report());
        }
        if news.services {
            self.member.checking(self.session.checking());
        }
    }

    async fn send(&mut self, messages: Vec<Update>, outgoing: &Outgoing) -> Result<(), Status> {
        if messages.is_empty() {
            return Ok(());
        }
        self.tell_fleet();
        for message in messages {
            self.shared.metrics.pushes.inc();
            post(message, outgoing).await?;
        }
        Ok(())
    }
}

async fn post(message: Update, outgoing: &Outgoing) -> Result<(), Status> {
    match timeout(SEND, outgoing.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the proxy has gone")),
        Err(_) => Err(Status::deadline_exceeded("the proxy does not read its configuration")),
    }
}

fn stopping() -> Status {
    Status::unavailable("the operator is stopping: connect to another replica")
}
