//! The thread that takes the messages: times each one and gives it to a handler, and tells what
//! its CPU clock says in the end. It never touches the engine otherwise.

use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kalshi_feed::{Messages, RawMessage, RecvError};
use nix::time::{ClockId, clock_gettime};

use crate::failure::Failure;
use crate::latency::{Latency, LiveLatency, Quantiles};

/// How long it waits before it looks around.
const LOOK: Duration = Duration::from_millis(20);
/// How often it publishes figures for the view.
const PUBLISH: Duration = Duration::from_millis(250);

/// What is done with each message.
pub(crate) trait Handler: Send + 'static {
    /// One message; `age` since the socket read that brought it.
    ///
    /// # Errors
    /// Whatever makes going on pointless; the consumer then ends.
    fn message(&mut self, message: &RawMessage, age: Duration) -> Result<(), Failure>;

    /// Nothing is waiting now.
    ///
    /// # Errors
    /// As for `message`.
    fn idle(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// The engine has stopped and everything was taken.
    ///
    /// # Errors
    /// As for `message`.
    fn end(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// What the thread leaves.
#[derive(Debug)]
pub(crate) struct Consumed<H> {
    pub(crate) handler: H,
    /// Socket read to consumer.
    pub(crate) latency: Quantiles,
    /// CPU time of this thread.
    pub(crate) cpu: Duration,
    /// Why it ended early, if it did.
    pub(crate) outcome: Result<(), Failure>,
}

/// Starts the thread. `live` gets figures while it runs, if there is somebody to look.
///
/// # Errors
/// The system refuses a thread.
pub(crate) fn spawn<H: Handler>(
    messages: Messages,
    handler: H,
    live: Option<LiveLatency>,
) -> io::Result<JoinHandle<Consumed<H>>> {
    std::thread::Builder::new()
        .name("consumer".to_owned())
        .spawn(move || consume(messages, handler, live.as_ref()))
}

fn consume<H: Handler>(
    mut messages: Messages,
    mut handler: H,
    live: Option<&LiveLatency>,
) -> Consumed<H> {
    let mut latency = Latency::new();
    let outcome = take(&mut messages, &mut handler, &mut latency, live);
    Consumed { handler, latency: latency.quantiles(), cpu: thread_cpu(), outcome }
}

fn take<H: Handler>(
    messages: &mut Messages,
    handler: &mut H,
    latency: &mut Latency,
    live: Option<&LiveLatency>,
) -> Result<(), Failure> {
    let mut publish = Instant::now();
    loop {
        let next = match messages.try_recv() {
            Err(RecvError::Empty) => {
                handler.idle()?;
                messages.recv_timeout(LOOK)
            }
            other => other,
        };
        let now = Instant::now();
        match next {
            Ok(message) => {
                let age = now.saturating_duration_since(message.received_at.mono);
                latency.record(age);
                handler.message(&message, age)?;
            }
            Err(RecvError::Disconnected) => return handler.end(),
            Err(_) => {}
        }
        if let Some(live) = live
            && now >= publish
        {
            live.publish(latency.quantiles());
            publish = now + PUBLISH;
        }
    }
}

/// CPU time this thread has used; zero where the system does not tell.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
