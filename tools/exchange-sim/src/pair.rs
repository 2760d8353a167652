//! One proxied connection: its two sockets and what is on its way between them. It moves bytes as
//! its wire says and notes when the client cannot get all that the exchange sent. It never accepts
//! or connects.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mio::net::TcpStream;
use socket2::SockRef;

use crate::pipe::{End, Next, Pipe};
use crate::wire::{Flow, Lane, Wire};

/// Bytes read at a time.
const CHUNK: usize = 16 * 1024;
/// Turns of one direction before others get theirs.
const TURNS: usize = 32;

/// What the exchange must know about a connection that came through the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The client's own address.
    pub(crate) client: SocketAddr,
    /// Some of what the exchange wrote can no longer be read by the client.
    pub(crate) broken: Arc<AtomicBool>,
}

impl Route {
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

/// One end of a pair.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) socket: TcpStream,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl Side {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, readable: true, writable: true }
    }

    fn arm_reset(&self) {
        drop(SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)));
    }
}

/// What a pair needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A turn at once.
    Again,
    /// A turn at this time, or when a socket says so.
    At(Instant),
    /// A turn when a socket says so.
    Wait,
    /// Its end; sockets that need it are armed to reset.
    Drop,
}

/// What one direction came to.
enum Turn {
    Need(Need),
    /// The end was passed on.
    Finished,
    /// A reset was passed on, or the limit reached: it is over.
    Over(Over),
}

/// How a connection is over.
enum Over {
    Reset,
    Limit,
    /// The side written to is gone.
    Dead,
}

/// One proxied connection.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) wire: Wire,
    route: Route,
    pub(crate) client: Side,
    /// `None` once it has gone where the client must not notice.
    pub(crate) exchange: Option<Side>,
    down: Pipe,
    up: Pipe,
    down_done: bool,
    up_done: bool,
    /// The client's end is known to be gone, though nothing was read from it.
    pub(crate) client_gone: bool,
}

impl Pair {
    pub(crate) fn new(client: TcpStream, exchange: TcpStream, route: Route, wire: Wire) -> Self {
        Self {
            wire,
            route,
            client: Side::new(client),
            exchange: Some(Side::new(exchange)),
            down: Pipe::default(),
            up: Pipe::default(),
            down_done: false,
            up_done: false,
            client_gone: false,
        }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.route.client
    }

    /// Whether everything that came in went out, as far as its wire lets it.
    pub(crate) fn is_idle(&self) -> bool {
        let through = |pipe: &Pipe, lane: &Lane| pipe.is_empty() || lane.flow == Flow::Stalled;
        through(&self.down, &self.wire.to_client) && through(&self.up, &self.wire.to_exchange)
    }

    /// Resets both sides at once; what is on its way is lost.
    pub(crate) fn reset(&mut self) {
        self.break_off();
        self.client.arm_reset();
        if let Some(exchange) = &self.exchange {
            exchange.arm_reset();
        }
    }

    /// The client cannot get all that was sent, unless it got everything to the very end already.
    fn break_off(&self) {
        if !self.down_done {
            self.route.broken.store(true, Ordering::Relaxed);
        }
    }

    /// Moves what can be moved.
    pub(crate) fn drive(&mut self, rng: &mut Rng, now: Instant) -> Need {
        let unheard = self.client_gone && self.wire.to_exchange.flow != Flow::Open;
        let alone = self.exchange.is_none() && self.wire.to_client.flow == Flow::Open;
        if unheard || alone {
            // A client left without being heard: the exchange need not keep a place for it. Or the
            // exchange did, and the client can hear of it again.
            self.reset();
            return Need::Drop;
        }
        let lanes = (self.wire.to_client, self.wire.to_exchange);
        let slow = self.wire.slow_close;
        let down = match &mut self.exchange {
            Some(exchange) if !self.down_done => {
                let mut lost = false;
                let ends = (exchange, &mut self.client);
                let turn = pump(&lanes.0, slow, &mut self.down, ends, &mut lost, rng, now);
                if lost {
                    self.break_off();
                }
                turn
            }
            _ => Turn::Need(Need::Wait),
        };
        let down = match self.settle(down, true) {
            Need::Drop => return Need::Drop,
            need => need,
        };
        let up = match &mut self.exchange {
            Some(exchange) if !self.up_done => {
                let ends = (&mut self.client, exchange);
                pump(&lanes.1, slow, &mut self.up, ends, &mut false, rng, now)
            }
            Some(_) => Turn::Need(Need::Wait),
            None => discard(&mut self.client),
        };
        let up = match self.settle(up, false) {
            Need::Drop => return Need::Drop,
            need => need,
        };
        if self.down_done && self.up_done {
            return Need::Drop;
        }
        match (down, up) {
            (Need::Again, _) | (_, Need::Again) => Need::Again,
            (Need::At(one), Need::At(other)) => Need::At(one.min(other)),
            (Need::At(one), _) | (_, Need::At(one)) => Need::At(one),
            _ => Need::Wait,
        }
    }

    fn settle(&mut self, turn: Turn, down: bool) -> Need {
        let over = match turn {
            Turn::Need(need) => return need,
            Turn::Finished => {
                *(if down { &mut self.down_done } else { &mut self.up_done }) = true;
                return Need::Wait;
            }
            Turn::Over(over) => over,
        };
        match over {
            Over::Limit => {
                self.break_off();
                drop(self.client.socket.shutdown(Shutdown::Write));
                if let Some(exchange) = &self.exchange {
                    exchange.arm_reset();
                }
                Need::Drop
            }
            // The exchange has gone, and the client must not notice.
            Over::Reset | Over::Dead
                if self.wire.to_client.flow != Flow::Open
                    && down == matches!(over, Over::Reset) =>
            {
                self.break_off();
                self.exchange = None;
                Need::Again
            }
            Over::Reset | Over::Dead => {
                self.reset();
                Need::Drop
            }
        }
    }
}

/// Reads from one side, writes to the other, until nothing more can be done now.
fn pump(
    lane: &Lane,
    slow_close: Duration,
    pipe: &mut Pipe,
    (from, to): (&mut Side, &mut Side),
    lost: &mut bool,
    rng: &mut Rng,
    now: Instant,
) -> Turn {
    let mut chunk = [0; CHUNK];
    for _ in 0..TURNS {
        let mut moved = false;
        let room = if lane.flow == Flow::BlackHole { CHUNK } else { pipe.room().min(CHUNK) };
        if from.readable && room > 0 && lane.flow != Flow::Stalled && !pipe.ended() {
            let into = chunk.get_mut(..room).unwrap_or_default();
            match from.socket.read(into) {
                Ok(0) if lane.flow == Flow::BlackHole => return Turn::Over(Over::Reset),
                Ok(0) => pipe.finish(End::Fin, lane, slow_close, now),
                Ok(_) if lane.flow == Flow::BlackHole => *lost = true,
                Ok(count) => pipe.push(chunk.get(..count).unwrap_or_default(), lane, rng, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => from.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if lane.flow == Flow::BlackHole => return Turn::Over(Over::Reset),
                Err(_) => pipe.finish(End::Reset, lane, slow_close, now),
            }
            moved = from.readable;
        }
        if lane.flow == Flow::Open {
            match pass_on(lane, pipe, to, now) {
                Ok(went) => moved |= went,
                Err(turn) => return turn,
            }
        }
        if !moved {
            let next = if lane.flow == Flow::Open { pipe.next(lane, now) } else { Next::Nothing };
            return Turn::Need(match next {
                Next::Later(due) => Need::At(due),
                _ => Need::Wait,
            });
        }
    }
    Turn::Need(Need::Again)
}

/// Writes what may go now; whether there was any.
fn pass_on(lane: &Lane, pipe: &mut Pipe, to: &mut Side, now: Instant) -> Result<bool, Turn> {
    let mut went = false;
    loop {
        let bytes = match pipe.next(lane, now) {
            Next::Bytes(bytes) if to.writable => bytes,
            Next::Bytes(_) | Next::Later(_) | Next::Nothing => return Ok(went),
            Next::Limit => return Err(Turn::Over(Over::Limit)),
            Next::End(End::Reset) => return Err(Turn::Over(Over::Reset)),
            Next::End(End::Fin) => {
                drop(to.socket.shutdown(Shutdown::Write));
                return Err(Turn::Finished);
            }
        };
        match to.socket.write(bytes) {
            Ok(count) => {
                pipe.took(count, lane, now);
                went = true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Still connecting.
            Err(error) if error.kind() == ErrorKind::NotConnected => to.writable = false,
            Err(_) => return Err(Turn::Over(Over::Dead)),
        }
    }
}

/// Reads from a client whose exchange has gone, until it leaves too.
fn discard(client: &mut Side) -> Turn {
    let mut chunk = [0; CHUNK];
    while client.readable {
        match client.socket.read(&mut chunk) {
            Ok(0) => return Turn::Over(Over::Reset),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => client.readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Turn::Over(Over::Reset),
        }
    }
    Turn::Need(Need::Wait)
}
