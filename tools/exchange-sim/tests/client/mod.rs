//! A plain blocking client: rustls or TCP, hand-made frames, every read under a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use exchange_sim::Exchange;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

/// What a read can bring.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Text(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
    End,
    Reset,
    /// Nothing came for as long as was asked.
    Silence,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    local: SocketAddr,
    socket: TcpStream,
    bytes: Vec<u8>,
    head: usize,
    may_wait: bool,
}

/// One TLS configuration per exchange, so that later connections resume.
fn tls_config(exchange: &Exchange) -> Arc<ClientConfig> {
    static MADE: Mutex<Vec<(String, Arc<ClientConfig>)>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap();
    if let Some((_, config)) = made.iter().find(|(ca, _)| ca == exchange.ca_pem()) {
        return Arc::clone(config);
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(exchange.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    made.push((exchange.ca_pem().to_owned(), Arc::new(config)));
    made.last().map(|(_, config)| Arc::clone(config)).unwrap()
}

/// Signed headers for a path.
pub(crate) fn sign_headers(exchange: &Exchange, path: &str) -> String {
    let body: String = exchange.key_pem().lines().filter(|line| !line.starts_with('-')).collect();
    let pair = KeyPair::from_pkcs8(&STANDARD.decode(body).unwrap()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_millis().to_string();
    let mut signature = vec![0; pair.public_modulus_len()];
    let message = format!("{now}GET{path}");
    pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
    format!(
        "KALSHI-ACCESS-KEY: {}\r\nKALSHI-ACCESS-TIMESTAMP: {now}\r\nKALSHI-ACCESS-SIGNATURE: {}\r\n",
        exchange.key_id(),
        STANDARD.encode(signature)
    )
}

impl Client {
    /// An upgraded connection.
    pub(crate) fn connect(exchange: &Exchange) -> Self {
        let path = "/trade-api/ws/v2";
        Self::attempt(exchange, path, &sign_headers(exchange, path)).expect("an upgrade")
    }

    /// Tries to upgrade; status and whole answer if refused.
    pub(crate) fn attempt(
        exchange: &Exchange,
        path: &str,
        headers: &str,
    ) -> Result<Self, (u16, String)> {
        let tcp = TcpStream::connect(exchange.local_addr()).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tcp.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        tcp.set_nodelay(true).unwrap();
        let local = tcp.local_addr().unwrap();
        let socket = tcp.try_clone().unwrap();
        let stream: Box<dyn Stream> = if exchange.url().starts_with("wss://") {
            let name = ServerName::try_from("localhost").unwrap();
            let tls = ClientConnection::new(tls_config(exchange), name).unwrap();
            Box::new(StreamOwned::new(tls, tcp))
        } else {
            Box::new(tcp)
        };
        let mut client =
            Self { stream, local, socket, bytes: Vec::new(), head: 0, may_wait: false };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        client.raw(request.as_bytes());
        let end = loop {
            if let Some(at) = client.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(client.more().is_none(), "ended before the answer's head");
        };
        let head = String::from_utf8(client.bytes[..end].to_vec()).unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 101 {
            assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
            client.head = end;
            return Ok(client);
        }
        while client.more().is_none() {}
        Err((status, String::from_utf8_lossy(&client.bytes).into_owned()))
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The socket underneath, for reading what comes without looking at it.
    #[allow(dead_code, reason = "only the measurement reads below TLS")]
    pub(crate) fn socket(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// Sends a masked frame.
    pub(crate) fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut out = vec![first];
        match payload.len() {
            short @ 0..=125 => out.push(0x80 | short as u8),
            medium @ 126..=65_535 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&u16::try_from(medium).unwrap().to_be_bytes());
            }
            long => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        out.extend_from_slice(&mask);
        out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at & 3]));
        self.raw(&out);
    }

    pub(crate) fn send(&mut self, command: &Value) {
        self.frame(0x81, command.to_string().as_bytes());
    }

    pub(crate) fn subscribe(&mut self, id: u64, channels: &[&str], tickers: &[String]) {
        let mut params = json!({ "channels": channels });
        if !tickers.is_empty() {
            params["market_tickers"] = json!(tickers);
        }
        self.send(&json!({"id": id, "cmd": "subscribe", "params": params}));
    }

    /// Reads more bytes; an event if there are none.
    fn more(&mut self) -> Option<Event> {
        if self.head > 1 << 20 {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
        let mut chunk = [0; 16_384];
        match self.stream.read(&mut chunk) {
            Ok(0) => Some(Event::End),
            Ok(count) => {
                self.bytes.extend_from_slice(&chunk[..count]);
                None
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(Event::Reset),
            // TLS: FIN without close_notify.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Some(Event::End),
            Err(error) if self.may_wait && error.kind() == ErrorKind::WouldBlock => {
                Some(Event::Silence)
            }
            Err(error) => panic!("nothing to read within the deadline: {error}"),
        }
    }

    /// The next frame, or how the connection ended.
    pub(crate) fn next(&mut self) -> Event {
        let (first, payload) = match self.whole_frame() {
            Ok(frame) => frame,
            Err(end) => return end,
        };
        match first {
            0x81 => {
                assert_eq!(payload.last(), Some(&b'\n'), "frames end with a newline");
                Event::Text(payload)
            }
            0x88 => Event::Close(u16::from_be_bytes([payload[0], payload[1]])),
            0x89 => Event::Ping(payload),
            0x8a => Event::Pong(payload),
            other => panic!("opcode {other:#x}"),
        }
    }

    /// The first byte and the payload of the next frame, whatever they are.
    pub(crate) fn whole_frame(&mut self) -> Result<(u8, Vec<u8>), Event> {
        loop {
            let bytes = &self.bytes[self.head..];
            let need = match bytes {
                [_, length @ 0..=125, ..] => Some((2, usize::from(*length))),
                [_, 126, high, low, ..] => {
                    Some((4, usize::from(u16::from_be_bytes([*high, *low]))))
                }
                [_, 127, rest @ ..] if rest.len() >= 8 => {
                    Some((10, u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize))
                }
                [_, 128..=255, ..] => panic!("a masked server frame"),
                _ => None,
            };
            if let Some((start, length)) = need
                && bytes.len() >= start
                && bytes.len() - start >= length
            {
                let frame = (bytes[0], bytes[start..start + length].to_vec());
                self.head += start + length;
                return Ok(frame);
            }
            if let Some(event) = self.more() {
                return Err(event);
            }
        }
    }

    /// What was read and is no whole frame yet.
    #[allow(dead_code, reason = "only where frames are cut")]
    pub(crate) fn unfinished(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// From now on silence for this long is an event rather than a failure.
    #[allow(dead_code, reason = "only where silence is what is expected")]
    pub(crate) fn expect_silence(&mut self, after: Duration) {
        self.socket.set_read_timeout(Some(after)).unwrap();
        self.may_wait = true;
    }

    /// The next text frame as JSON.
    pub(crate) fn json(&mut self) -> Value {
        match self.next() {
            Event::Text(text) => serde_json::from_slice(&text).expect("JSON"),
            other => panic!("expected text, got {other:?}"),
        }
    }
}
