//! A client on fastwebsockets, on the runtime and TLS of `tokio_side`, without the boxed stream an
//! HTTP library would put between. It owns the reading of its frames and nothing else.

use std::cell::Cell;
use std::rc::Rc;

use bytes::BytesMut;
use fastwebsockets::{OpCode, Payload, Role, WebSocket};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::clock::Stamp;
use crate::tokio_side::{Shared, serve};
use crate::work::{self, Outcome, Task};

/// Measures it.
pub fn fastwebsockets(task: &Task<'_>, go: impl FnOnce(), halt: impl FnOnce()) -> Outcome {
    work::run(task, |access, jobs, io| serve(access, jobs, io, read), go, halt)
}

async fn read(
    conn: usize,
    stream: TlsStream<TcpStream>,
    io: Shared<BytesMut>,
    at: Rc<Cell<Stamp>>,
) {
    let mut socket = WebSocket::after_handshake(stream, Role::Client);
    loop {
        let frame = match socket.read_frame().await {
            Ok(frame) => frame,
            Err(error) => panic!("connection {conn}: {error}"),
        };
        if frame.opcode != OpCode::Text {
            continue;
        }
        assert!(frame.fin && frame.is_utf8(), "connection {conn}: not a whole text");
        let Payload::Bytes(data) = frame.payload else { panic!("a payload of another kind") };
        io.borrow_mut().message(conn, data, at.get());
    }
}
