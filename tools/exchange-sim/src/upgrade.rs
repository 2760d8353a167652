//! The HTTP upgrade: reads the request, checks path, WebSocket headers and the API signature, and
//! writes the answer, the recorded 401 bodies among them. It never touches a socket.

use std::time::Duration;

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::clock::Stamp;

/// The one path that upgrades.
pub(crate) const PATH: &str = "/trade-api/ws/v2";
/// Most bytes of a request head.
pub(crate) const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// What an upgrade is checked against.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) key_id: String,
    /// PKCS#1 `RSAPublicKey`.
    pub(crate) public_key: Vec<u8>,
    pub(crate) clock_past: Duration,
    pub(crate) clock_future: Duration,
    pub(crate) require_signature: bool,
}

/// What became of the bytes of a request so far.
#[derive(Debug)]
pub(crate) enum Reading {
    /// The head is not complete yet.
    Partial,
    /// The head took `used` bytes; the answer, and whether it is a 101.
    Done { used: usize, answer: Answer },
}

/// The answer to an upgrade.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) bytes: Vec<u8>,
}

/// Why the credentials are not accepted: the recorded bodies of a 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There are none: `token_authentication_failure`.
    NoCredentials,
    /// `signature_is_missing_from_headers`.
    NoSignature,
    /// `authentication_error`, details `NOT_FOUND`.
    UnknownKey,
    /// `header_timestamp_expired`.
    Timestamp,
    /// `authentication_error`, details `INCORRECT_API_KEY_SIGNATURE`.
    Signature,
}

impl Denied {
    /// By the code of its body, or the details where several have the same.
    pub(crate) fn from_code(code: &str) -> Option<Self> {
        Some(match code {
            "token_authentication_failure" => Self::NoCredentials,
            "signature_is_missing_from_headers" => Self::NoSignature,
            "NOT_FOUND" => Self::UnknownKey,
            "header_timestamp_expired" => Self::Timestamp,
            "INCORRECT_API_KEY_SIGNATURE" => Self::Signature,
            _ => return None,
        })
    }

    fn body(self) -> &'static str {
        match self {
            Self::NoCredentials => {
                r#"{"error":{"code":"token_authentication_failure","message":"token authentication failure"}}"#
            }
            Self::NoSignature => {
                r#"{"error":{"code":"signature_is_missing_from_headers","message":"signature is missing from headers"}}"#
            }
            Self::UnknownKey => {
                r#"{"error":{"code":"authentication_error","message":"authentication_error","details":"NOT_FOUND"}}"#
            }
            Self::Timestamp => {
                r#"{"error":{"code":"header_timestamp_expired","message":"header timestamp expired"}}"#
            }
            Self::Signature => {
                r#"{"error":{"code":"authentication_error","message":"authentication_error","details":"INCORRECT_API_KEY_SIGNATURE"}}"#
            }
        }
    }
}

/// Reads a request head and answers it. `refuse`: answer every upgrade with this status.
pub(crate) fn read(bytes: &[u8], gate: &Gate, refuse: Option<u16>, now: Stamp) -> Reading {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => Reading::Partial,
        Ok(httparse::Status::Complete(used)) if used <= MAX_HEAD => {
            let answer = answer(&request, gate, refuse, now);
            Reading::Done { used, answer }
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            Reading::Done { used: bytes.len(), answer: refusal(431, now) }
        }
        Err(_) => Reading::Done { used: bytes.len(), answer: refusal(400, now) },
    }
}

fn answer(
    request: &httparse::Request<'_, '_>,
    gate: &Gate,
    refuse: Option<u16>,
    now: Stamp,
) -> Answer {
    if let Some(status) = refuse {
        return refusal(status, now);
    }
    if request.path != Some(PATH) {
        return refusal(404, now);
    }
    if request.method != Some("GET") {
        return refusal(405, now);
    }
    let lists = |name: &str, token: &str| {
        header(request, name).is_some_and(|value| {
            value.split(',').any(|item| item.trim().eq_ignore_ascii_case(token))
        })
    };
    if request.version != Some(1)
        || !lists("upgrade", "websocket")
        || !lists("connection", "upgrade")
    {
        return refusal(400, now);
    }
    if header(request, "sec-websocket-version") != Some("13") {
        return refusal(426, now);
    }
    let Some(key) = header(request, "sec-websocket-key").filter(|key| is_nonce(key)) else {
        return refusal(400, now);
    };
    if let Err(denied) = check(request, gate, now) {
        return refusal_with(401, Some(denied), "", now);
    }
    switching(key, now)
}

/// The 101 for a key.
pub(crate) fn switching(key: &str, now: Stamp) -> Answer {
    let accept = accept_key(key);
    let bytes = format!(
        "HTTP/1.1 101 Switching Protocols\r\nDate: {}\r\nUpgrade: websocket\r\nConnection: \
         Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n",
        now.http_date(),
    );
    Answer { status: 101, bytes: bytes.into_bytes() }
}

fn header<'a>(request: &httparse::Request<'_, 'a>, name: &str) -> Option<&'a str> {
    let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok().map(str::trim)
}

fn is_nonce(key: &str) -> bool {
    STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// RFC 6455's proof that the server read the key.
pub(crate) fn accept_key(key: &str) -> String {
    let mut hash = sha1_smol::Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.digest().bytes())
}

fn check(request: &httparse::Request<'_, '_>, gate: &Gate, now: Stamp) -> Result<(), Denied> {
    let key = header(request, "kalshi-access-key");
    let timestamp = header(request, "kalshi-access-timestamp");
    let signature = header(request, "kalshi-access-signature");
    if key.is_none() && timestamp.is_none() && signature.is_none() && !gate.require_signature {
        return Ok(());
    }
    let (Some(key), Some(timestamp)) = (key, timestamp) else {
        return Err(Denied::NoCredentials);
    };
    let signature = signature.ok_or(Denied::NoSignature)?;
    if key != gate.key_id {
        return Err(Denied::UnknownKey);
    }
    let signed_at: u64 = timestamp.parse().map_err(|_| Denied::Timestamp)?;
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let oldest = now.millis().saturating_sub(millis(gate.clock_past));
    let newest = now.millis().saturating_add(millis(gate.clock_future));
    if !(oldest..=newest).contains(&signed_at) {
        return Err(Denied::Timestamp);
    }
    let signature = STANDARD.decode(signature).map_err(|_| Denied::Signature)?;
    let message = format!("{timestamp}GET{PATH}");
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, &gate.public_key)
        .verify(message.as_bytes(), &signature)
        .map_err(|_| Denied::Signature)
}

/// A refusal with the usual body of its status.
pub(crate) fn refusal(status: u16, now: Stamp) -> Answer {
    refusal_with(status, None, "", now)
}

/// A refusal in the exchange's error form; `extra` are whole header lines.
pub(crate) fn refusal_with(status: u16, denied: Option<Denied>, extra: &str, now: Stamp) -> Answer {
    let body = match (denied, status) {
        (Some(denied), _) => denied.body(),
        (None, 400) => r#"{"error":{"code":"bad_request","message":"bad request"}}"#,
        (None, 401) => Denied::NoCredentials.body(),
        // As recorded, from the network in front of the exchange.
        (None, 403) => "Forbidden\n",
        (None, 404) => r#"{"error":{"code":"not_found","message":"not found"}}"#,
        (None, 429) => r#"{"error":{"code":"too_many_requests","message":"too many requests"}}"#,
        (None, 503) => {
            r#"{"error":{"code":"service_unavailable","message":"service unavailable"}}"#
        }
        (None, _) => r#"{"error":{"code":"request_failed","message":"request failed"}}"#,
    };
    let form = if body.starts_with('{') { "application/json" } else { "text/plain" };
    let version = if status == 426 { "Sec-WebSocket-Version: 13\r\n" } else { "" };
    let bytes = format!(
        "HTTP/1.1 {status} {}\r\nDate: {}\r\nContent-Type: {form}\r\n\
         Content-Length: {}\r\n{version}{extra}Connection: close\r\n\r\n{body}",
        reason(status),
        now.http_date(),
        body.len(),
    );
    Answer { status, bytes: bytes.into_bytes() }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::ApiKey;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeyPair;
    use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding};

    const NOW: u64 = 1_793_534_400_000;

    struct Bench {
        gate: Gate,
        pair: KeyPair,
    }

    fn bench() -> Bench {
        let key = ApiKey::generate().unwrap();
        let body: String = key.pkcs8_pem.lines().filter(|line| !line.starts_with('-')).collect();
        let pair = KeyPair::from_pkcs8(&STANDARD.decode(body).unwrap()).unwrap();
        let gate = Gate {
            key_id: key.id,
            public_key: key.public,
            clock_past: Duration::from_secs(15),
            clock_future: Duration::from_secs(60),
            require_signature: true,
        };
        Bench { gate, pair }
    }

    fn sign(bench: &Bench, encoding: &'static dyn RsaEncoding, text: &str) -> String {
        let mut out = vec![0; bench.pair.public_modulus_len()];
        let random = SystemRandom::new();
        bench.pair.sign(encoding, &random, text.as_bytes(), &mut out).unwrap();
        STANDARD.encode(out)
    }

    fn request(path: &str, extra: &[(&str, &str)]) -> Vec<u8> {
        let mut text = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: \
             Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
             dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        for (name, value) in extra {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    fn ask(bench: &Bench, bytes: &[u8]) -> (u16, String) {
        let now = Stamp::from_micros(NOW * 1_000);
        match read(bytes, &bench.gate, None, now) {
            Reading::Done { answer, .. } => {
                (answer.status, String::from_utf8(answer.bytes).unwrap())
            }
            Reading::Partial => (0, String::new()),
        }
    }

    fn signed(bench: &Bench, at: u64) -> Vec<u8> {
        let at = at.to_string();
        let signature = sign(bench, &RSA_PSS_SHA256, &format!("{at}GET{PATH}"));
        request(
            PATH,
            &[
                ("KALSHI-ACCESS-KEY", &bench.gate.key_id),
                ("KALSHI-ACCESS-TIMESTAMP", &at),
                ("KALSHI-ACCESS-SIGNATURE", &signature),
            ],
        )
    }

    #[test]
    fn a_good_signature_is_accepted() {
        let bench = bench();
        let (status, text) = ask(&bench, &signed(&bench, NOW));
        assert_eq!(status, 101);
        assert!(text.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        for at in [NOW - 15_000, NOW + 60_000] {
            assert_eq!(ask(&bench, &signed(&bench, at)).0, 101);
        }
    }

    #[test]
    fn each_cause_of_401_has_its_recorded_body() {
        let bench = bench();
        let now = NOW.to_string();
        let id = bench.gate.key_id.clone();
        let good = sign(&bench, &RSA_PSS_SHA256, &format!("{now}GET{PATH}"));
        let pkcs1 = sign(&bench, &RSA_PKCS1_SHA256, &format!("{now}GET{PATH}"));
        let other = sign(&bench, &RSA_PSS_SHA256, &format!("{now}GET{PATH}?x=1"));
        let (key, time, sig) =
            ("KALSHI-ACCESS-KEY", "KALSHI-ACCESS-TIMESTAMP", "KALSHI-ACCESS-SIGNATURE");
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (request(PATH, &[]), "\"token_authentication_failure\""),
            (request(PATH, &[(key, &id), (time, &now)]), "\"signature_is_missing_from_headers\""),
            (request(PATH, &[(key, "other"), (time, &now), (sig, &good)]), "\"NOT_FOUND\""),
            (signed(&bench, NOW - 15_001), "\"header_timestamp_expired\""),
            (signed(&bench, NOW + 60_001), "\"header_timestamp_expired\""),
            (request(PATH, &[(key, &id), (time, &now), (sig, &pkcs1)]), "INCORRECT_API_KEY"),
            (request(PATH, &[(key, &id), (time, &now), (sig, &other)]), "INCORRECT_API_KEY"),
            (request(PATH, &[(key, &id), (time, &now), (sig, "%%")]), "INCORRECT_API_KEY"),
        ];
        for (bytes, want) in cases {
            let (status, text) = ask(&bench, &bytes);
            assert_eq!(status, 401);
            assert!(text.contains(want), "{want} not in {text}");
            assert!(text.contains("\r\nDate: Sun, 01 Nov 2026 12:00:00 GMT\r\n"), "{text}");
            let body = text.split("\r\n\r\n").nth(1).unwrap();
            assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
        }
    }

    #[test]
    fn other_refusals() {
        let mut bench = bench();
        assert_eq!(ask(&bench, &request("/", &[])).0, 404);
        assert_eq!(ask(&bench, &request("/trade-api/ws/v2?x=1", &[])).0, 404);
        assert_eq!(ask(&bench, b"GARBAGE\x00\r\n\r\n").0, 400);
        assert_eq!(ask(&bench, b"GET /trade-api/ws/v2 HTTP/1.1\r\n\r\n").0, 400);
        assert_eq!(ask(&bench, b"GET /trade-api/ws/v2 HTTP/1.1\r\nHost: x").0, 0);
        let long = request(PATH, &[("X", &"y".repeat(MAX_HEAD))]);
        assert_eq!(ask(&bench, &long).0, 431);
        assert_eq!(ask(&bench, &long[..MAX_HEAD]).0, 431);
        bench.gate.require_signature = false;
        assert_eq!(ask(&bench, &request(PATH, &[])).0, 101);
        assert_eq!(ask(&bench, &request(PATH, &[("KALSHI-ACCESS-KEY", "x")])).0, 401);
    }
}
