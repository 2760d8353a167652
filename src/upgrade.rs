//! Reads the answer to the upgrade: the 101 that makes a WebSocket, or the refusal and what it
//! says, less what must not be shown. Pure; the bytes after a 101 are the connection's first frames
//! and are kept.

use std::time::{Duration, SystemTime};

use tungstenite::handshake::client::Response;
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::http::HeaderMap;

use crate::clock::unix_ms;
use crate::error::Cause;
use crate::request::AskedWith;

/// The longest answer header accepted.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// How much of a refusal's body is waited for, and how much of it is shown.
const BODY_BYTES_MAX: usize = 4 << 10;
const DETAIL_CHARS_MAX: usize = 200;
/// Nothing meant for people has a word as long. A signature has 344 characters.
const WORD_CHARS_MAX: usize = 64;
/// So many characters in a row that the signature has too are no coincidence.
const SIGNATURE_RUN_CHARS: usize = 8;
/// A shorter id could be a part of any word; the exchange's have 36 characters.
const ID_CHARS_MIN: usize = 8;
/// In the place of what is not shown.
const WITHHELD: &str = "[withheld]";

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// More bytes are needed.
    Partial,
    /// A refusal, and its body goes on until the connection ends, unless it never does.
    Endless,
    /// A WebSocket; the frames begin at this offset.
    Accepted { offset: usize },
    /// Something else, and how far the server's clock is ahead, if it says.
    Refused { cause: Cause, ahead_ms: Option<i64> },
}

/// Reads the answer to a request, which began to come at `wall`. `ended` means that no more bytes
/// will come.
pub(crate) fn read(bytes: &[u8], asked: &AskedWith, wall: SystemTime, ended: bool) -> Answer {
    let mut offset = 0;
    let response = loop {
        match Response::try_parse(bytes.get(offset..).unwrap_or_default()) {
            Ok(Some((length, response))) => {
                offset += length;
                // Another comes after it (RFC 9110, section 15.2).
                let is_interim = matches!(response.status().as_u16(), 100 | 102..=199);
                if !is_interim {
                    break response;
                }
            }
            Ok(None) if bytes.len() > HEADER_BYTES_MAX => return not_websocket("endless header"),
            Ok(None) if ended => return not_websocket("the stream ended within the header"),
            Ok(None) => return Answer::Partial,
            Err(error) => return not_websocket(&error.to_string()),
        }
    };
    let status = response.status().as_u16();
    if status == 101 {
        return match check_accepted(response.headers(), asked) {
            Ok(()) => Answer::Accepted { offset },
            Err(cause) => Answer::Refused { cause, ahead_ms: None },
        };
    }
    let body = bytes.get(offset..).unwrap_or_default();
    let headers = response.headers();
    match body_of(status, headers) {
        _ if ended || body.len() >= BODY_BYTES_MAX => {}
        Body::None => {}
        Body::Sized(length) if body.len() >= length => {}
        Body::Chunked if body.windows(5).any(|end| end == b"0\r\n\r\n") => {}
        Body::Sized(_) | Body::Chunked => return Answer::Partial,
        Body::ToTheEnd => return Answer::Endless,
    }
    let date = text(headers, "date").and_then(|value| httpdate::parse_http_date(value).ok());
    // Two dates of one clock, where there are two: ours may be off.
    let now = date.unwrap_or(wall);
    let cause = Cause::Upgrade {
        status,
        detail: detail(body, asked),
        retry_after: text(headers, "retry-after").and_then(|value| retry_after(value, now)),
    };
    Answer::Refused { cause, ahead_ms: date.map(|date| ms(date).saturating_sub(ms(wall))) }
}

fn ms(time: SystemTime) -> i64 {
    i64::try_from(unix_ms(time)).unwrap_or(i64::MAX)
}

fn not_websocket(message: &str) -> Answer {
    let cause = Cause::Handshake { message: message.to_owned() };
    Answer::Refused { cause, ahead_ms: None }
}

/// The rules of RFC 6455, section 4.1, for a 101. We ask for no extension and no subprotocol.
fn check_accepted(headers: &HeaderMap, asked: &AskedWith) -> Result<(), Cause> {
    let handshake = |message: &str| Err(Cause::Handshake { message: message.to_owned() });
    if !text(headers, "upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return handshake("a 101 without `Upgrade: websocket`");
    }
    let tokens = text(headers, "connection").unwrap_or_default();
    if !tokens.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")) {
        return handshake("a 101 without `Connection: Upgrade`");
    }
    let expected = derive_accept_key(asked.key.as_bytes());
    if text(headers, "sec-websocket-accept") != Some(expected.as_str()) {
        return handshake("a 101 whose accept key does not match the request");
    }
    for name in ["sec-websocket-extensions", "sec-websocket-protocol"] {
        if let Some(value) = headers.get(name) {
            let value = String::from_utf8_lossy(value.as_bytes());
            return Err(Cause::Extension { name: shorten(&value, asked) });
        }
    }
    Ok(())
}

/// Where the body of a refusal ends (RFC 9112, section 6.3).
enum Body {
    None,
    Sized(usize),
    Chunked,
    /// With the connection.
    ToTheEnd,
}

fn body_of(status: u16, headers: &HeaderMap) -> Body {
    if matches!(status, 204 | 304) {
        return Body::None;
    }
    if let Some(codings) = text(headers, "transfer-encoding") {
        let last = codings.rsplit(',').next().unwrap_or_default().trim();
        return if last.eq_ignore_ascii_case("chunked") { Body::Chunked } else { Body::ToTheEnd };
    }
    let length = text(headers, "content-length").and_then(|value| value.trim().parse().ok());
    length.map_or(Body::ToTheEnd, Body::Sized)
}

/// The code, message and details of the exchange's JSON error; otherwise the text itself.
fn detail(body: &[u8], asked: &AskedWith) -> String {
    let json = body.iter().position(|&byte| byte == b'{').and_then(|start| body.get(start..));
    let first = json
        .map(serde_json::Deserializer::from_slice)
        .and_then(|source| source.into_iter::<serde_json::Value>().next()?.ok());
    let parts = first.as_ref().and_then(|value| value.get("error")).map(|error| {
        let part = |name: &str| error.get(name).and_then(|value| value.as_str());
        let mut parts: Vec<_> = ["code", "details"].into_iter().filter_map(part).collect();
        if parts.is_empty() {
            parts.extend(part("message"));
        }
        parts.join(" ")
    });
    shorten(&parts.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned()), asked)
}

/// The front of it, on one line. A proxy may repeat the request it refuses: the key's id and the
/// signature, or a part of it, are taken out, also where it was escaped or wrapped.
fn shorten(text: &str, asked: &AskedWith) -> String {
    let known = asked.key_id.len() >= ID_CHARS_MIN;
    let text = if known { text.replace(&asked.key_id, WITHHELD) } else { text.to_owned() };
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "+/=_-%\\&#;".contains(c);
    let words = text.trim().split_inclusive(|c| !is_of_word(c)).map(|part| {
        let word = part.trim_end_matches(|c| !is_of_word(c));
        let is_secret = word.len() > WORD_CHARS_MAX || is_of_signature(word, &asked.signature);
        if is_secret { part.replace(word, WITHHELD) } else { part.to_owned() }
    });
    // None is empty.
    let printable = words.take(DETAIL_CHARS_MAX).collect::<String>();
    let printable = printable.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(DETAIL_CHARS_MAX).collect()
}

fn is_of_signature(word: &str, signature: &str) -> bool {
    let mut runs = signature.as_bytes().windows(SIGNATURE_RUN_CHARS);
    let is_in_word = |run: &[u8]| {
        word.as_bytes().windows(SIGNATURE_RUN_CHARS).any(|other| other.eq_ignore_ascii_case(run))
    };
    runs.any(is_in_word)
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(value: &str, wall: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(wall).unwrap_or_default())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_ID: &str = "0b7fe2bd-25b5-4b0b-9ab8-2ad3a3b9e6d5";
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn answer(text: &str, ended: bool) -> Answer {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_793_534_400);
        let (key, key_id) = (KEY.to_owned(), KEY_ID.to_owned());
        let asked = AskedWith { key, key_id, signature: signature() };
        read(text.as_bytes(), &asked, wall, ended)
    }

    /// 344 characters, as of the exchange's keys.
    fn signature() -> String {
        use base64::Engine as _;
        let mixed = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()[0];
        base64::engine::general_purpose::STANDARD.encode((0..256).map(mixed).collect::<Vec<_>>())
    }

    fn accepted(extra: &str) -> String {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\n\
             Connection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n{extra}\r\n"
        )
    }

    fn cause(answer: Answer) -> Cause {
        match answer {
            Answer::Refused { cause, .. } => cause,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn b10_a_101_keeps_the_frames_behind_it() {
        let head = accepted("");
        let text = format!("{head}\u{1}\u{2}");
        assert_eq!(answer(&text, false), Answer::Accepted { offset: head.len() });
        for end in 0..head.len() {
            assert_eq!(answer(&head[..end], false), Answer::Partial, "{end}");
        }
    }

    #[test]
    fn b8_what_is_said_before_the_answer_is_passed_over() {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
        let head = format!("{interim}{}", accepted(""));
        for end in 0..head.len() {
            assert_eq!(answer(&head[..end], false), Answer::Partial, "{end}");
        }
        let text = format!("{head}\u{1}\u{2}");
        assert_eq!(answer(&text, false), Answer::Accepted { offset: head.len() });
        let refused = format!("{interim}HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nsorry");
        let Cause::Upgrade { status, detail, .. } = cause(answer(&refused, false)) else {
            panic!()
        };
        assert_eq!((status, detail.as_str()), (503, "sorry"));
        let endless = interim.repeat(HEADER_BYTES_MAX / interim.len() + 1);
        assert!(matches!(cause(answer(&endless, false)), Cause::Handshake { .. }));
    }

    #[test]
    fn b8_a_101_that_breaks_the_rules_is_refused() {
        let table = [
            accepted("").replace(ACCEPT, "AAAA"),
            accepted("").replace("upgrade: WebSocket\r\n", ""),
            accepted("").replace("keep-alive, Upgrade", "close"),
            "HTTP/1.0 101 Switching Protocols\r\n\r\n".to_owned(),
            "SSH-2.0-OpenSSH\r\n\r\n".to_owned(),
        ];
        for text in table {
            assert!(matches!(cause(answer(&text, false)), Cause::Handshake { .. }), "{text}");
        }
    }

    #[test]
    fn b9_an_extension_nobody_asked_for_is_refused_by_name() {
        let extension = accepted("Sec-WebSocket-Extensions: permessage-deflate\r\n");
        let name = "permessage-deflate".to_owned();
        assert_eq!(cause(answer(&extension, false)), Cause::Extension { name });
    }

    #[test]
    fn b1_a_refusal_waits_for_its_body_and_names_the_code() {
        let body = r#"{"error":{"code":"authentication_error","message":"authentication_error","details":"NOT_FOUND"}}"#;
        let text = format!(
            "HTTP/1.1 401 Unauthorized\r\nDate: Sun, 01 Nov 2026 11:59:58 GMT\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(answer(&text[..text.len() - 1], false), Answer::Partial);
        let Answer::Refused { cause, ahead_ms } = answer(&text, false) else { panic!() };
        let detail = "authentication_error NOT_FOUND".to_owned();
        assert_eq!(cause, Cause::Upgrade { status: 401, detail, retry_after: None });
        assert_eq!(ahead_ms, Some(-2_000));
    }

    #[test]
    fn b4_retry_after_is_seconds_or_a_date() {
        for (value, expected) in [
            ("7", Some(7)),
            ("Sun, 01 Nov 2026 12:00:30 GMT", Some(30)),
            ("Sun, 01 Nov 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
        ] {
            let text = format!("HTTP/1.1 429 Too Many\r\nRetry-After: {value}\r\n\r\n");
            let Cause::Upgrade { retry_after, .. } = cause(answer(&text, true)) else { panic!() };
            assert_eq!(retry_after, expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn b4_a_date_to_come_back_at_is_read_by_the_servers_clock() {
        let text = "HTTP/1.1 503 No\r\nDate: Sun, 01 Nov 2026 15:00:00 GMT\r\n\
                    Retry-After: Sun, 01 Nov 2026 15:00:20 GMT\r\n\r\n";
        let Cause::Upgrade { retry_after, .. } = cause(answer(text, true)) else { panic!() };
        assert_eq!(retry_after, Some(Duration::from_secs(20)), "whatever ours says");
    }

    #[test]
    fn b2_a_body_without_a_length_is_waited_for_to_its_end() {
        let head = "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n";
        let body = r#"{"error":{"code":"header_timestamp_expired"}}"#;
        assert_eq!(answer(head, false), Answer::Endless, "what it says decides what follows");
        let text = format!("{head}{body}");
        assert_eq!(answer(&text, false), Answer::Endless);
        let Cause::Upgrade { detail, .. } = cause(answer(&text, true)) else { panic!() };
        assert_eq!(detail, "header_timestamp_expired");
    }

    #[test]
    fn b3_where_a_body_ends_is_read_from_the_head() {
        let whole = |text: &str| matches!(answer(text, false), Answer::Refused { .. });
        for head in ["204 No Content", "304 Not Modified"] {
            assert!(whole(&format!("HTTP/1.1 {head}\r\n\r\n")), "{head}: there is none");
        }
        let head = "HTTP/1.1 503 No\r\nContent-Length: 1\r\nTransfer-Encoding:";
        let chunked = format!("{head} gzip, Chunked\r\n\r\n5\r\nsorry\r\n");
        assert_eq!(answer(&chunked, false), Answer::Partial, "the length does not count");
        assert!(whole(&format!("{chunked}0\r\n\r\n")));
        assert_eq!(answer(&format!("{head} gzip\r\n\r\nsorry"), false), Answer::Endless);
        assert!(whole(&format!("HTTP/1.1 503 No\r\n\r\n{}", "y".repeat(BODY_BYTES_MAX))));
    }

    #[test]
    fn b11_a_signature_is_not_shown_however_a_page_escapes_or_wraps_it() {
        let signature = signature();
        assert_eq!(signature.len(), 344);
        assert!(signature.contains('+') && signature.contains('/'));
        let html = signature.replace('+', "&#43;").replace('/', "&#x2F;").replace('=', "&#61;");
        let percent = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let wrapped = |text: &str, columns: usize, by: &str| {
            let lines = text.as_bytes().chunks(columns).map(|line| str::from_utf8(line).unwrap());
            lines.collect::<Vec<_>>().join(by)
        };
        let mut echoes = vec![signature.to_lowercase()];
        for text in [&signature, &html, &percent] {
            echoes.push(text.clone());
            for columns in [20, 48, 64, 72, 76] {
                let by = ["\n", "\r\n  ", "<br>"];
                echoes.extend(by.map(|by| wrapped(text, columns, by)));
            }
        }
        for echo in echoes {
            let text = format!("HTTP/1.1 403 No\r\n\r\nyou sent {echo} for /trade-api/ws/v2");
            let Cause::Upgrade { detail, .. } = cause(answer(&text, true)) else { panic!() };
            assert!(detail.starts_with("you sent [withheld]"), "{detail}");
            let shown = detail.replace(WITHHELD, " ").replace("<br>", " ");
            let words = ["you", "sent", "for", "/trade-api/ws/v2"];
            let left: usize =
                shown.split_whitespace().filter(|w| !words.contains(w)).map(str::len).sum();
            assert!(left < 16, "{left} characters of it: {detail}");
        }
    }

    #[test]
    fn an_end_within_the_answer_is_told() {
        assert!(matches!(cause(answer("HTTP/1.1 1", true)), Cause::Handshake { .. }));
        let short = "HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\nsorry";
        let Cause::Upgrade { status, detail, .. } = cause(answer(short, true)) else { panic!() };
        assert_eq!((status, detail.as_str()), (503, "sorry"));
    }
}
