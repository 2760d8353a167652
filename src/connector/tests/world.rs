//! A connector over a scripted network and name service in virtual time. What its tests share;
//! nothing here asserts.

use crossbeam_channel::bounded;
use tungstenite::handshake::derive_accept_key;

use super::super::*;
use crate::clock::CpuTime;
use crate::error::Disposition;
use crate::resolve::Lookup;
use crate::transport::Sent;

/// What the scripted peer sends next.
pub(super) enum Chunk {
    Bytes(Vec<u8>),
    End,
    Fails(Cause),
}

/// Our end of a scripted connection.
pub(super) struct FakeLink {
    connected: Receiver<Result<(), Cause>>,
    secured: Receiver<Result<(), Cause>>,
    inbound: Receiver<Chunk>,
    outbound: Sender<Vec<u8>>,
}

/// The other end.
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    token: usize,
    connect: Sender<Result<(), Cause>>,
    secure: Sender<Result<(), Cause>>,
    chunks: Sender<Chunk>,
    pub(super) sent: Receiver<Vec<u8>>,
}

impl Peer {
    /// The request, once it was sent.
    pub(super) fn request(&self) -> String {
        String::from_utf8(self.sent.try_recv().unwrap()).unwrap()
    }
}

pub(super) struct FakeNet {
    peers: Sender<Peer>,
    ready: Receiver<Ready>,
    refuses: Receiver<Cause>,
    dialed: Option<Peer>,
}

/// A step that waits for the script to say how it ends.
fn outcome(script: &Receiver<Result<(), Cause>>) -> Result<bool, Cause> {
    script.try_recv().map_or(Ok(false), |result| result.map(|()| true))
}

impl Transport for FakeNet {
    type Link = FakeLink;

    fn dial(&mut self, address: SocketAddr) -> Result<FakeLink, Cause> {
        if let Ok(cause) = self.refuses.try_recv() {
            return Err(cause);
        }
        let (connect, connected) = bounded(1);
        let (secure, secured) = bounded(1);
        let (chunks, inbound) = bounded(100_000);
        let (outbound, sent) = bounded(100);
        self.dialed = Some(Peer { address, token: 0, connect, secure, chunks, sent });
        Ok(FakeLink { connected, secured, inbound, outbound })
    }
    fn register(&mut self, _: &mut FakeLink, token: usize) -> Result<(), Cause> {
        let peer = self.dialed.take().unwrap();
        self.peers.send(Peer { token, ..peer }).unwrap();
        Ok(())
    }
    fn deregister(&mut self, _: &mut FakeLink) {}
    fn connected(&mut self, link: &mut FakeLink) -> Result<bool, Cause> {
        outcome(&link.connected)
    }
    fn secure(&mut self, link: &mut FakeLink) -> Result<bool, Cause> {
        outcome(&link.secured)
    }
    fn resumed(&self, _: &FakeLink) -> Option<bool> {
        Some(false)
    }
    fn receive(&mut self, link: &mut FakeLink, plain: &mut Vec<u8>) -> Result<Received, Cause> {
        match link.inbound.try_recv() {
            Ok(Chunk::Bytes(bytes)) => {
                plain.extend(bytes);
                Ok(Received::Some { more: true, at: self.stamp() })
            }
            Ok(Chunk::End) => Ok(Received::Ended),
            Ok(Chunk::Fails(cause)) => Err(cause),
            Err(_) => Ok(Received::Blocked),
        }
    }
    fn send(&mut self, link: &mut FakeLink, bytes: &mut Vec<u8>) -> Result<Sent, Cause> {
        if !bytes.is_empty() {
            link.outbound.send(std::mem::take(bytes)).unwrap();
        }
        Ok(Sent::All)
    }
    fn local_addr(&self, _: &FakeLink) -> Option<SocketAddr> {
        Some(([127, 0, 0, 1], 40_000).into())
    }
    fn wait(&mut self, _: Option<Duration>, ready: &mut Vec<Ready>) -> std::io::Result<()> {
        ready.extend(self.ready.try_iter());
        Ok(())
    }
    fn stamp(&self) -> Stamp {
        crate::clock::stamp()
    }
    fn now(&self) -> Instant {
        crate::clock::now()
    }
    fn cpu(&self) -> CpuTime {
        CpuTime::default()
    }
}

/// A name service that answers when the script says so.
pub(super) struct FakeResolver {
    asked: Sender<()>,
    answers: Receiver<Lookup>,
}

impl Resolver for FakeResolver {
    fn ask(&mut self, _: Instant) {
        self.asked.send(()).unwrap();
    }
    fn answer(&mut self) -> Option<Lookup> {
        self.answers.try_recv().ok()
    }
}

/// A connector of four connections, with 10 s for each attempt.
pub(super) struct World {
    connector: Connector<FakeNet, FakeResolver>,
    orders: Sender<Dial>,
    pub(super) dialed: Receiver<Dialed<FakeLink>>,
    pub(super) peers: Receiver<Peer>,
    pub(super) refuse: Sender<Cause>,
    ready: Sender<Ready>,
    pub(super) answer: Sender<Lookup>,
    pub(super) asked: Receiver<()>,
    pub(super) counters: Arc<CachePadded<ControlCounters>>,
    start: Instant,
    /// What people's clocks say at the start.
    pub(super) wall: SystemTime,
    next: Next,
}

pub(super) const A: ([u8; 4], u16) = ([10, 0, 0, 1], 443);
pub(super) const B: ([u8; 4], u16) = ([10, 0, 0, 2], 443);
pub(super) const C: ([u8; 4], u16) = ([10, 0, 0, 3], 443);
pub(super) const ONE: ConnId = ConnId::new(1);

impl World {
    pub(super) fn new(credentials: Option<Credentials>) -> Self {
        let (orders, order_receiver) = bounded(100);
        let (reports, dialed) = bounded(100);
        let (peer_sender, peers) = bounded(100);
        let (ready, ready_receiver) = bounded(100_000);
        let (refuse, refuses) = bounded(100);
        let (answer, answers) = bounded(100);
        let (ask, asked) = bounded(100);
        let counters = Arc::default();
        let connector = Connector::new(ConnectorParts {
            transport: FakeNet { peers: peer_sender, ready: ready_receiver, refuses, dialed: None },
            resolver: FakeResolver { asked: ask, answers },
            endpoint: Endpoint::parse("wss://exchange.test/trade-api/ws/v2").unwrap(),
            credentials,
            connect_timeout: Duration::from_secs(10),
            connections: 4,
            orders: order_receiver,
            reports,
            counters: Arc::clone(&counters),
        });
        let start = crate::clock::now();
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_534_400);
        let next = Next::Now;
        Self {
            connector,
            orders,
            dialed,
            peers,
            refuse,
            ready,
            answer,
            asked,
            counters,
            start,
            wall,
            next,
        }
    }

    /// One turn at this time.
    pub(super) fn step(&mut self, seconds: f64) {
        let passed = Duration::from_secs_f64(seconds);
        self.connector.wait(None).unwrap();
        self.next =
            self.connector.step(Stamp { wall: self.wall + passed, mono: self.start + passed });
    }

    /// When the connector wants to be called next, in seconds.
    pub(super) fn due(&self) -> Option<f64> {
        match self.next {
            Next::At(due) => due.map(|due| (due - self.start).as_secs_f64()),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn begin(&mut self, conn: ConnId, epoch: u32, seconds: f64) {
        let (epoch, role) = (Epoch::new(epoch), Role::Orderbook);
        self.orders.send(Dial::Begin { conn, epoch, role }).unwrap();
        self.step(seconds);
    }

    /// Begins, and the name service answers at once.
    pub(super) fn dial(&mut self, epoch: u32, addresses: &[([u8; 4], u16)], seconds: f64) -> Peer {
        let addresses = addresses.iter().map(|&address| address.into()).collect();
        self.answer.send(Ok(addresses)).unwrap();
        self.begin(ONE, epoch, seconds);
        self.peers.try_recv().unwrap()
    }

    fn notify(&mut self, peer: &Peer, seconds: f64) {
        self.ready.send(Ready { token: peer.token, read_closed: false }).unwrap();
        self.step(seconds);
    }

    pub(super) fn connect(&mut self, peer: &Peer, result: Result<(), Cause>, seconds: f64) {
        peer.connect.send(result).unwrap();
        self.notify(peer, seconds);
    }

    pub(super) fn secure(&mut self, peer: &Peer, result: Result<(), Cause>, seconds: f64) {
        peer.secure.send(result).unwrap();
        self.notify(peer, seconds);
    }

    pub(super) fn give(&mut self, peer: &Peer, chunk: Chunk, seconds: f64) {
        peer.chunks.send(chunk).unwrap();
        self.notify(peer, seconds);
    }

    /// Goes on until the request is out, and gives it.
    pub(super) fn reach_upgrade(&mut self, peer: &Peer, seconds: f64) -> String {
        self.connect(peer, Ok(()), seconds);
        self.secure(peer, Ok(()), seconds);
        peer.request()
    }

    /// The one attempt under way reaches the upgrade, which is answered so.
    pub(super) fn answered(&mut self, epoch: u32, answer: &[u8]) -> Dialed<FakeLink> {
        let peer = self.dial(epoch, &[A], f64::from(epoch) * 100.0);
        let request = self.reach_upgrade(&peer, f64::from(epoch) * 100.0);
        self.give(&peer, Chunk::Bytes(filled_in(answer, &request)), f64::from(epoch) * 100.0);
        if self.dialed.is_empty() {
            self.give(&peer, Chunk::End, f64::from(epoch) * 100.0);
        }
        self.dialed.try_recv().unwrap()
    }

    pub(super) fn cause(&self) -> Cause {
        cause(self.dialed.try_recv().unwrap())
    }
}

pub(super) fn cause(dialed: Dialed<FakeLink>) -> Cause {
    match dialed {
        Dialed::Failed { cause, .. } => cause,
        Dialed::Up { .. } => panic!("it succeeded"),
    }
}

pub(super) fn header<'a>(request: &'a str, name: &str) -> &'a str {
    let find = |line: &'a str| line.split_once(": ").filter(|(key, _)| *key == name);
    request.lines().find_map(find).unwrap().1
}

/// The answer with the key that the request must be answered with.
pub(super) fn filled_in(answer: &[u8], request: &str) -> Vec<u8> {
    const PLACE: &[u8] = b"ACCEPT";
    let key = derive_accept_key(header(request, "Sec-WebSocket-Key").as_bytes());
    let Some(at) = answer.windows(PLACE.len()).position(|part| part == PLACE) else {
        return answer.to_vec();
    };
    [&answer[..at], key.as_bytes(), &answer[at + PLACE.len()..]].concat()
}

pub(super) fn switching(extra: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: ACCEPT\r\n{extra}\r\n"
    )
    .into_bytes()
}

pub(super) fn is_back_off(cause: &Cause) -> bool {
    cause.disposition() == Disposition::BackOff
}
