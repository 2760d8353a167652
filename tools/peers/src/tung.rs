//! A client on tungstenite over rustls, driven by mio, one crossbeam send per message: what a
//! synchronous Rust client usually looks like. It owns its loop and nothing else.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::{ClientConnection, StreamOwned};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use crate::clock::Stamp;
use crate::setup::{Access, Job};
use crate::work::{self, Io, Outcome, Task};

/// How often the loop looks whether the run is over.
const LOOK: Duration = Duration::from_millis(50);

type Socket = WebSocket<StreamOwned<ClientConnection, TcpStream>>;

/// tungstenite's settings at their best here: its reads clear the buffer first, so it is small.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(8 << 10)
}

/// Measures it.
pub fn tungstenite_mio(task: &Task<'_>, go: impl FnOnce(), halt: impl FnOnce()) -> Outcome {
    work::run(task, client, go, halt)
}

fn client(access: &Access, jobs: &[Job], mut io: Io<Bytes>) {
    let mut poll = Poll::new().expect("a poll");
    let mut sockets: Vec<Socket> = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let link = access.link(job);
        link.socket.set_nonblocking(true).expect("a non-blocking socket");
        let mut socket = TcpStream::from_std(link.socket);
        let registry = poll.registry();
        registry.register(&mut socket, Token(index), Interest::READABLE).expect("a place");
        let stream = StreamOwned::new(link.tls, socket);
        sockets.push(WebSocket::from_raw_socket(stream, Role::Client, Some(config())));
    }
    for (conn, socket) in sockets.iter_mut().enumerate() {
        drain(conn, socket, &mut io);
    }
    let mut events = Events::with_capacity(1_024);
    while !io.over() {
        if let Err(error) = poll.poll(&mut events, Some(LOOK)) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
        }
        for event in &events {
            let conn = event.token().0;
            drain(conn, &mut sockets[conn], &mut io);
        }
    }
}

/// Takes everything until the socket has no more.
fn drain(conn: usize, socket: &mut Socket, io: &mut Io<Bytes>) {
    let at = Stamp::now();
    while !io.over() {
        match socket.read() {
            Ok(Message::Text(text)) => io.message(conn, text.into(), at),
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("connection {conn}: {error}"),
        }
    }
}
