//! Ctrl-C and SIGTERM: the first ends the job early and cleanly, the second ends the process at
//! once. It decides nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use kalshi_feed::{Handle, Manager, StartError};

use crate::failure::Failure;

/// What the shell shows for a process ended by Ctrl-C.
const ENDED_BY_SIGNAL: i32 = 130;

/// Whether the user asked for the end.
#[derive(Debug)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
    wake: Receiver<()>,
    starting: Arc<(AtomicBool, OnceLock<Handle>)>,
}

impl Interrupt {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub(crate) fn install() -> Result<Self, Failure> {
        let asked = Arc::new(AtomicBool::new(false));
        let starting = Arc::new((AtomicBool::new(false), OnceLock::<Handle>::new()));
        let (sender, wake) = bounded(1);
        let (flag, start) = (Arc::clone(&asked), Arc::clone(&starting));
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(ENDED_BY_SIGNAL);
            }
            sender.try_send(()).unwrap_or_default();
            if start.0.load(Ordering::SeqCst)
                && let Some(handle) = start.1.get()
            {
                handle.request_stop();
            }
        })
        .map_err(|error| Failure::job(format!("cannot catch Ctrl-C: {error}")))?;
        Ok(Self { asked, wake, starting })
    }

    /// Whether a signal came.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Sleeps until then, or until a signal comes.
    pub(crate) fn sleep_until(&self, until: Instant) {
        if self.asked() {
            // Told already; what remains to be done still takes its turns.
            std::thread::sleep(
                until.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)),
            );
        } else {
            // A timeout is what usually happens.
            self.wake.recv_deadline(until).unwrap_or_default();
        }
    }

    /// Starts the engine in such a way that a signal ends the attempt.
    pub(crate) fn start(&self, manager: &mut Manager) -> Result<(), StartError> {
        self.starting.1.get_or_init(|| manager.handle());
        self.starting.0.store(true, Ordering::SeqCst);
        let started = if self.asked() { Err(StartError::Cancelled) } else { manager.start() };
        self.starting.0.store(false, Ordering::SeqCst);
        started
    }
}
