//! The body of a request on its way to an upstream. What has gone by is kept up to a limit, so that the request can be
//! sent again from its beginning. It decides nothing about whether to.

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::clock::Activity;
use super::guard::Phase;
use super::headers;
use super::incoming::{Broken, Incoming};

/// Why a body ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client broke off.
    #[error("the client broke off the request's body")]
    Client(#[source] Broken),
    /// The request was sent again: this try must not read on.
    #[error("another try has taken over")]
    Superseded,
}

/// A request's body, of which each try gets a view from the beginning.
#[derive(Clone, Debug)]
pub struct Source(Option<Rc<Shared>>);

#[derive(Debug)]
struct Shared {
    state: RefCell<State>,
    seen: Cell<u64>,
    // The size as announced.
    announced: SizeHint,
    // Bodies up to this size can be sent again.
    limit: usize,
    // Who wants to know when bytes go by.
    activity: OnceCell<Activity>,
}

impl Shared {
    fn new(state: State, announced: SizeHint, limit: usize) -> Self {
        Self { state: RefCell::new(state), seen: Cell::new(0), announced, limit, activity: OnceCell::new() }
    }
}

#[derive(Debug)]
struct State {
    incoming: Option<Incoming>,
    // From the beginning on. `None`: it has grown too large, or is not needed any more.
    kept: Option<Kept>,
    ended: bool,
    broken: bool,
    turn: u32,
    // Told of the end.
    phase: Option<Phase>,
    // For a copy of the request.
    tee: Option<Tee>,
}

/// What a copy gets, once it is whole.
#[derive(Debug)]
struct Tee {
    kept: Kept,
    limit: usize,
    whole: oneshot::Sender<Source>,
}

#[derive(Debug, Default)]
struct Kept {
    chunks: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
}

impl Source {
    /// Of a request as it came. Up to `limit` bytes of it are kept.
    #[must_use]
    pub fn new(incoming: Incoming, limit: usize) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        let announced = incoming.size_hint();
        let kept = (announced.lower() <= limit as u64).then(Kept::default);
        let state = State::new(Some(incoming), kept);
        Self(Some(Rc::new(Shared::new(state, announced, limit))))
    }

    /// None at all.
    #[must_use]
    pub const fn empty() -> Self {
        Self(None)
    }

    /// Read already.
    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        Self::of(Kept { size: bytes.len(), chunks: vec![bytes], trailers: None })
    }

    fn of(kept: Kept) -> Self {
        let seen = kept.size as u64;
        // A body with trailers has no length in HTTP/1.
        let announced = if kept.trailers.is_some() { SizeHint::new() } else { SizeHint::with_exact(seen) };
        let shared = Shared::new(State::new(None, Some(kept)), announced, usize::MAX);
        shared.seen.set(seen);
        Self(Some(Rc::new(shared)))
    }

    /// Has the connection know when the body has come to its end.
    pub(crate) fn tell(&self, phase: &Phase) {
        if let Some(shared) = &self.0 {
            shared.state.borrow_mut().phase = Some(phase.clone());
        }
    }

    /// For the next try. The body of an earlier one ends with an error when it is read on.
    #[must_use]
    pub fn open(&self) -> Outgoing {
        Outgoing(self.0.as_ref().map(|shared| {
            let turn = {
                let mut state = shared.state.borrow_mut();
                state.turn += 1;
                state.turn
            };
            View { shared: Rc::clone(shared), turn, at: 0, trailers_sent: false }
        }))
    }

    /// Whether a further try would send it whole.
    #[must_use]
    pub fn replayable(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let state = shared.state.borrow();
            !state.broken && (shared.seen.get() == 0 || state.kept.is_some())
        })
    }

    /// There will be no further try: lets go of what was kept.
    pub fn settle(&self) {
        if let Some(shared) = &self.0 {
            shared.state.borrow_mut().kept = None;
        }
    }

    /// Bytes that the client has sent so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.0.as_ref().map_or(0, |shared| shared.seen.get())
    }

    /// Tells it from now on when bytes of the client go by.
    pub(crate) fn touch(&self, activity: &Activity) {
        if let Some(shared) = &self.0 {
            let _ = shared.activity.set(activity.clone());
        }
    }

    /// The same body for a copy of the request, once the client has sent all of it. Nothing comes when it has more than
    /// `limit` bytes, breaks off, or is not read to its end.
    pub(crate) fn copy(&self, limit: usize) -> oneshot::Receiver<Self> {
        let (whole, copy) = oneshot::channel();
        match &self.0 {
            None => drop(whole.send(Self(None))),
            Some(shared) if shared.announced.lower() > limit as u64 => {}
            Some(shared) => {
                shared.state.borrow_mut().tee = Some(Tee { kept: Kept::default(), limit, whole });
            }
        }
        copy
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the client has sent all of it.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| {
            let state = shared.state.borrow();
            state.ended || state.incoming.as_ref().is_none_or(Body::is_end_stream)
        })
    }

    /// Whether the client broke off.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.state.borrow().broken)
    }
}

/// The body of one try.
#[derive(Debug)]
pub struct Outgoing(Option<View>);

#[derive(Debug)]
struct View {
    shared: Rc<Shared>,
    turn: u32,
    // How many of the kept chunks this view has given.
    at: usize,
    trailers_sent: bool,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(view) = &mut self.0 else { return Poll::Ready(None) };
        let shared = Rc::clone(&view.shared);
        view.poll(&mut shared.state.borrow_mut(), cx)
    }

    fn is_end_stream(&self) -> bool {
        let Some(view) = &self.0 else { return true };
        let state = view.shared.state.borrow();
        let replayed = state.kept.as_ref().is_none_or(|kept| view.at == kept.chunks.len());
        let trailers = state.kept.as_ref().is_some_and(|kept| kept.trailers.is_some());
        let ended = state.ended || state.incoming.as_ref().is_none_or(Body::is_end_stream);
        ended && replayed && (!trailers || view.trailers_sent)
    }

    fn size_hint(&self) -> SizeHint {
        // Asked for once, before anything is read.
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |view| view.shared.announced)
    }
}

impl State {
    fn new(incoming: Option<Incoming>, kept: Option<Kept>) -> Self {
        let ended = incoming.is_none();
        Self { incoming, kept, ended, broken: false, turn: 0, phase: None, tee: None }
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(phase) = self.phase.take() {
            phase.whole();
        }
        if let Some(tee) = self.tee.take() {
            // Nobody may want it any more.
            let _ = tee.whole.send(Source::of(tee.kept));
        }
    }

    fn copy(&mut self, frame: &Frame<Bytes>) {
        let Some(tee) = &mut self.tee else { return };
        if let Some(data) = frame.data_ref() {
            tee.kept.size += data.len();
            tee.kept.chunks.push(data.clone());
        } else {
            tee.kept.trailers = frame.trailers_ref().cloned();
        }
        if tee.kept.size > tee.limit {
            self.tee = None;
        }
    }
}

impl View {
    fn poll(
        &mut self,
        state: &mut State,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.turn != state.turn {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = state.kept.as_ref().and_then(|kept| kept.chunks.get(self.at)) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if state.ended {
            let trailers = state.kept.as_ref().and_then(|kept| kept.trailers.clone());
            let trailers = trailers.filter(|_| !std::mem::replace(&mut self.trailers_sent, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Some(incoming) = &mut state.incoming else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(e)) => {
                state.broken = true;
                state.tee = None;
                return Poll::Ready(Some(Err(BodyError::Client(e))));
            }
            None => {
                state.end();
                return Poll::Ready(None);
            }
        };
        // Some servers make headers of them.
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::state_identity(&mut trailers, None);
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        };
        let ended = incoming.is_end_stream();
        if state.tee.is_some() {
            state.copy(&frame);
        }
        if let Some(activity) = self.shared.activity.get() {
            activity.touch();
        }
        // Whoever knows the length does not ask for more.
        if ended {
            state.end();
        }
        if let Some(data) = frame.data_ref() {
            self.shared.seen.set(self.shared.seen.get() + data.len() as u64);
            if let Some(kept) = &mut state.kept {
                kept.size += data.len();
                if kept.size <= self.shared.limit {
                    kept.chunks.push(data.clone());
                    self.at += 1;
                } else {
                    state.kept = None;
                }
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            state.end();
            self.trailers_sent = true;
            if let Some(kept) = &mut state.kept {
                kept.trailers = Some(trailers.clone());
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }
}
