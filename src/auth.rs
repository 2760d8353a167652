//! Signs the upgrade. Owns the private key and never shows it: not in `Debug`, not in an error.
//!
//! What is signed: `<milliseconds>GET<path>`, RSA-PSS with SHA-256 and a salt of 32 bytes, sent
//! as padded standard base64 (Kalshi's documentation, "API Keys" and "Quick start: WebSockets").

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA256;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::error::{ConfigError, KeyError};

/// A key id and its RSA private key.
///
/// Reads unencrypted PEM, PKCS#1 (`BEGIN RSA PRIVATE KEY`) or PKCS#8 (`BEGIN PRIVATE KEY`), with
/// any line ending, also where line ends were written as `\n` in an environment variable.
///
/// ```no_run
/// use kalshi_feed::Credentials;
/// let credentials = Credentials::from_pem_file("my-key-id", "kalshi.pem")?;
/// assert!(format!("{credentials:?}").contains("2048 bits"), "and never the key");
/// # Ok::<(), kalshi_feed::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Credentials {
    key_id: Arc<str>,
    key: Arc<KeyPair>,
}

impl Credentials {
    /// Reads the key from PEM text.
    ///
    /// # Errors
    /// [`KeyError`], which says what the text should have been.
    pub fn from_pem(key_id: &str, pem: &[u8]) -> Result<Self, KeyError> {
        let printable = |byte: u8| byte.is_ascii_graphic();
        if key_id.is_empty() || !key_id.bytes().all(printable) {
            return Err(KeyError::Id);
        }
        let key = match parse_pem(pem)? {
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            _ => return Err(KeyError::NotRsa),
        };
        let key = key.map_err(|_| KeyError::NotRsa)?;
        Ok(Self { key_id: key_id.into(), key: Arc::new(key) })
    }

    /// Reads the key from a PEM file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] for the file, [`ConfigError::Key`] for what is in it.
    pub fn from_pem_file(key_id: &str, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let pem = std::fs::read(path).map_err(|error| ConfigError::Unreadable {
            setting: "key_file",
            path: path.to_owned(),
            error,
        })?;
        Ok(Self::from_pem(key_id, &pem)?)
    }

    /// The value of `KALSHI-ACCESS-KEY`.
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The value of `KALSHI-ACCESS-SIGNATURE` for an upgrade to `path` at `unix_ms`; `None` when
    /// the crypto library fails, which it does only without randomness.
    pub(crate) fn sign(&self, unix_ms: u64, path: &str) -> Option<String> {
        let text = format!("{unix_ms}GET{path}");
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .ok()?;
        Some(STANDARD.encode(signature))
    }
}

/// The first private key in the text; written-out `\n` are taken for line ends.
fn parse_pem(pem: &[u8]) -> Result<PrivateKeyDer<'static>, KeyError> {
    let text = String::from_utf8_lossy(pem);
    if text.contains("ENCRYPTED") {
        return Err(KeyError::Encrypted);
    }
    let text = text.replace("\\r", "").replace("\\n", "\n");
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::Pem)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.key.public_modulus_len().saturating_mul(8);
        write!(f, "Credentials(RSA key of {bits} bits)")
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let body = STANDARD.encode(der);
        let lines: Vec<_> =
            body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    /// The PKCS#1 key inside a PKCS#8 one: the last OCTET STRING of the outer SEQUENCE.
    fn inner_pkcs1(pkcs8: &[u8]) -> &[u8] {
        &pkcs8[26..]
    }

    #[test]
    fn both_key_forms_sign_what_the_exchange_verifies() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.as_der().unwrap();
        let pkcs8 = pem("PRIVATE KEY", der.as_ref());
        let pkcs1 = pem("RSA PRIVATE KEY", inner_pkcs1(der.as_ref()));
        for text in [pkcs8.clone(), pkcs1, pkcs8.replace('\n', "\\n"), pkcs8.replace('\n', "\r\n")]
        {
            let credentials = Credentials::from_pem("id", text.as_bytes()).unwrap();
            let signature = credentials.sign(1_793_534_400_957, "/trade-api/ws/v2").unwrap();
            let public = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, pair.public_key());
            public
                .verify(b"1793534400957GET/trade-api/ws/v2", &STANDARD.decode(signature).unwrap())
                .unwrap();
        }
    }

    #[test]
    fn bad_keys_are_refused_with_the_reason() {
        let table: [(&str, &str, KeyError); 4] = [
            ("id", "", KeyError::Pem),
            ("", "", KeyError::Id),
            ("id", "-----BEGIN ENCRYPTED PRIVATE KEY-----", KeyError::Encrypted),
            (
                "id",
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                KeyError::NotRsa,
            ),
        ];
        for (id, text, expected) in table {
            assert_eq!(Credentials::from_pem(id, text.as_bytes()).unwrap_err(), expected);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let text = pem("PRIVATE KEY", pair.as_der().unwrap().as_ref());
        let shown = format!("{:?}", Credentials::from_pem("secret-id", text.as_bytes()).unwrap());
        assert_eq!(shown, "Credentials(RSA key of 2048 bits)");
    }
}
