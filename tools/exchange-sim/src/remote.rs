//! A thread that owns something, and the handle that has it do things: passes closures to it, waits
//! for their results, joins it. It knows nothing of what the thread is for.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use mio::Waker;

/// Control calls under way at a time.
const ORDERS: usize = 64;
/// How long a control call waits before it looks whether the thread still lives.
const LOOK: Duration = Duration::from_millis(100);

/// A control call, run on the thread that owns `S`.
pub(crate) type Order<S> = Box<dyn FnOnce(&mut S) + Send>;

/// The way orders take to their thread.
pub(crate) fn orders<S>() -> (Sender<Order<S>>, Receiver<Order<S>>) {
    bounded(ORDERS)
}

/// The handle.
pub(crate) struct Remote<S> {
    orders: Sender<Order<S>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl<S> fmt::Debug for Remote<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Remote").field(&self.thread).finish()
    }
}

impl<S: 'static> Remote<S> {
    /// Starts the thread; `waker` must end its waiting whenever an order has come.
    pub(crate) fn start(
        name: &str,
        orders: Sender<Order<S>>,
        waker: Waker,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { orders, waker: Arc::new(waker), thread: Some(thread) })
    }

    /// Runs something on the thread and waits for its result; `None` if the thread has died.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, answer) = bounded(1);
        let mut order: Order<S> = Box::new(move |owner| {
            // A caller that has gone needs no answer.
            drop(reply.try_send(order(owner)));
        });
        loop {
            match self.orders.send_timeout(order, LOOK) {
                Ok(()) => break,
                Err(SendTimeoutError::Timeout(back)) if self.alive() => order = back,
                Err(_) => return None,
            }
        }
        if let Err(error) = self.waker.wake() {
            log::warn!("a thread of the exchange could not be woken: {error}");
        }
        self.wait(&answer)
    }

    /// Waits for something the thread will send; `None` if it has died.
    pub(crate) fn wait<R>(&self, answer: &Receiver<R>) -> Option<R> {
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Timeout) if self.alive() => {}
                Err(_) => return answer.try_recv().ok(),
            }
        }
    }

    /// Waits until the thread, told to stop by `stop`, has ended.
    pub(crate) fn join(&mut self, stop: impl FnOnce(&mut S) + Send + 'static) {
        self.ask(stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a thread of the exchange had panicked");
        }
    }

    fn alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}
