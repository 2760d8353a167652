//! How every peer gets its sockets: connect, sign, upgrade, subscribe; and the one way in which
//! channels and markets are spread over connections. It reads no market data.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

/// How many connections each channel has.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Of `ticker`.
    pub ticker: u16,
    /// Of `trade`.
    pub trade: u16,
    /// Of `market_lifecycle_v2`.
    pub lifecycle: u16,
    /// Of `orderbook_delta`.
    pub orderbook: u16,
}

impl Layout {
    /// All connections.
    #[must_use]
    pub fn connections(self) -> usize {
        [self.ticker, self.trade, self.lifecycle, self.orderbook].into_iter().map(usize::from).sum()
    }
}

/// What one connection subscribes to.
#[derive(Clone, Debug)]
pub struct Job {
    /// The channel's name.
    pub channel: &'static str,
    /// Its markets; none for all.
    pub markets: Vec<String>,
}

/// The jobs of all connections, markets dealt out evenly.
#[must_use]
pub fn plan(layout: Layout, markets: &[String]) -> Vec<Job> {
    let global = [
        ("ticker", layout.ticker),
        ("trade", layout.trade),
        ("market_lifecycle_v2", layout.lifecycle),
    ];
    let mut jobs = Vec::new();
    for (channel, count) in global {
        jobs.extend((0..count).map(|_| Job { channel, markets: Vec::new() }));
    }
    let books = usize::from(layout.orderbook);
    jobs.extend((0..books).map(|at| Job {
        channel: "orderbook_delta",
        markets: markets.iter().skip(at).step_by(books).cloned().collect(),
    }));
    jobs
}

/// Where the exchange is, and how to be let in.
#[derive(Clone, Debug)]
pub struct Access {
    /// Its address.
    pub address: SocketAddr,
    /// TLS that trusts it, for all connections.
    pub tls: Arc<ClientConfig>,
    path: String,
    key: Arc<KeyPair>,
    key_id: String,
}

/// An upgraded connection that has sent its subscribe command.
#[derive(Debug)]
pub struct Link {
    /// The socket, still blocking.
    pub socket: TcpStream,
    /// Its TLS state.
    pub tls: ClientConnection,
}

impl Access {
    pub(crate) fn new(url: &str, ca_pem: &str, key_id: &str, key_pem: &str) -> Self {
        let rest = url.strip_prefix("wss://localhost:").expect("a local exchange");
        let (port, path) = rest.split_once('/').expect("a path");
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate");
        roots.add(authority).expect("an authority");
        // The engine's: the same cipher code for everyone.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).expect("a key");
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port"))),
            tls: Arc::new(tls),
            path: format!("/{path}"),
            key: Arc::new(KeyPair::from_pkcs8(key.secret_der()).expect("an RSA key")),
            key_id: key_id.to_owned(),
        }
    }

    /// The name its certificate is for.
    #[must_use]
    pub fn name(&self) -> ServerName<'static> {
        ServerName::try_from("localhost").expect("a name")
    }

    /// The signed upgrade request.
    #[must_use]
    pub fn request(&self) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let now = since.as_millis();
        let text = format!("{now}GET{}", self.path);
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .expect("a signature");
        format!(
            "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             KALSHI-ACCESS-KEY: {}\r\nKALSHI-ACCESS-TIMESTAMP: {now}\r\n\
             KALSHI-ACCESS-SIGNATURE: {}\r\n\r\n",
            self.path,
            self.key_id,
            STANDARD.encode(signature)
        )
    }

    /// Connects, upgrades and subscribes, blocking.
    #[must_use]
    pub fn link(&self, job: &Job) -> Link {
        let socket = TcpStream::connect(self.address).expect("a connection");
        socket.set_nodelay(true).expect("TCP_NODELAY");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let tls = ClientConnection::new(Arc::clone(&self.tls), self.name()).expect("TLS");
        let mut stream = StreamOwned::new(tls, socket);
        stream.write_all(self.request().as_bytes()).expect("the request goes out");
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("the answer's head");
            head.push(byte[0]);
        }
        check(&head);
        stream.write_all(&job.frame()).expect("the command goes out");
        stream.flush().expect("the command is out");
        Link { socket: stream.sock, tls: stream.conn }
    }
}

/// Panics unless the upgrade was accepted.
pub(crate) fn check(head: &[u8]) {
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(head));
}

impl Job {
    /// The subscribe command as a masked frame (the mask is zero).
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut params = json!({ "channels": [self.channel] });
        if !self.markets.is_empty() {
            params["market_tickers"] = json!(self.markets);
        }
        let text = json!({ "id": 1, "cmd": "subscribe", "params": params }).to_string();
        let mut frame = vec![0x81];
        match u16::try_from(text.len()) {
            Ok(short @ 0..=125) => frame.push(0x80 | short as u8),
            Ok(medium) => {
                frame.push(0x80 | 126);
                frame.extend(medium.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((text.len() as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.bytes());
        frame
    }

    /// Messages that come in answer to the subscribe command: its reply and the snapshots.
    #[must_use]
    pub fn answers(&self) -> u64 {
        1 + self.markets.len() as u64
    }
}
