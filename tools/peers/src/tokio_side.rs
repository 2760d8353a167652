//! A client on tokio-tungstenite, and what both clients on tokio share: one runtime on one thread,
//! TLS by tokio-rustls, a task per connection, one crossbeam send per message.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::Message;
use tungstenite::protocol::Role;

use crate::clock::Stamp;
use crate::setup::{self, Access, Job};
use crate::tung::config;
use crate::work::{self, Io, Outcome, Task};

/// How often the runtime looks whether the run is over.
const LOOK: Duration = Duration::from_millis(50);

/// What the tasks of one runtime share.
pub(crate) type Shared<P> = Rc<RefCell<Io<P>>>;

/// Measures tokio-tungstenite.
pub fn tokio_tungstenite(task: &Task<'_>, go: impl FnOnce(), halt: impl FnOnce()) -> Outcome {
    work::run(task, |access, jobs, io| serve(access, jobs, io, read), go, halt)
}

async fn read(conn: usize, stream: TlsStream<TcpStream>, io: Shared<Bytes>, at: Rc<Cell<Stamp>>) {
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config())).await;
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Text(text)) => io.borrow_mut().message(conn, text.into(), at.get()),
            Ok(_) => {}
            Err(error) => panic!("connection {conn}: {error}"),
        }
    }
}

/// Connects all and runs a `read` task for each until the run is over.
pub(crate) fn serve<P, F>(
    access: &Access,
    jobs: &[Job],
    io: Io<P>,
    read: impl Fn(usize, TlsStream<TcpStream>, Shared<P>, Rc<Cell<Stamp>>) -> F,
) where
    P: AsRef<[u8]> + 'static,
    F: Future<Output = ()> + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tasks = tokio::task::LocalSet::new();
    let io = Rc::new(RefCell::new(io));
    tasks.block_on(&runtime.expect("a runtime"), async {
        for (conn, job) in jobs.iter().enumerate() {
            let stream = link(access, job).await;
            let at = Rc::new(Cell::new(Stamp::now()));
            let inner = Box::pin(read(conn, stream, Rc::clone(&io), Rc::clone(&at)));
            tokio::task::spawn_local(Stamped { inner, at });
        }
        while !io.borrow().over() {
            tokio::time::sleep(LOOK).await;
        }
    });
}

/// Connects, upgrades and subscribes.
async fn link(access: &Access, job: &Job) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(access.address).await.expect("a connection");
    socket.set_nodelay(true).expect("TCP_NODELAY");
    let connector = TlsConnector::from(std::sync::Arc::clone(&access.tls));
    let mut stream = connector.connect(access.name(), socket).await.expect("TLS");
    stream.write_all(access.request().as_bytes()).await.expect("the request goes out");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the answer's head"));
    }
    setup::check(&head);
    stream.write_all(&job.frame()).await.expect("the command goes out");
    stream.flush().await.expect("the command is out");
    stream
}

/// A task that reads the clocks once each time it is polled, rather than for every message.
struct Stamped<F> {
    inner: Pin<Box<F>>,
    at: Rc<Cell<Stamp>>,
}

impl<F: Future<Output = ()>> Future for Stamped<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.at.set(Stamp::now());
        self.inner.as_mut().poll(context)
    }
}
