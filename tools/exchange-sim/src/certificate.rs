//! The exchange's identities, made at start: a certificate authority with a leaf, for loopback
//! names as a rule, and an RSA key pair for one API key. Nothing is ever read from or written to
//! disk here.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use crate::exchange::ExchangeError;
use crate::names;
use crate::security::{Identity, Security};

/// One API key: its id, the private half for the client, the public half for the exchange.
#[derive(Clone)]
pub(crate) struct ApiKey {
    pub(crate) id: String,
    pub(crate) pkcs8_pem: String,
    pub(crate) pkcs1_pem: String,
    /// PKCS#1 `RSAPublicKey`.
    pub(crate) public: Vec<u8>,
}

impl ApiKey {
    pub(crate) fn generate() -> Result<Self, ExchangeError> {
        let broken = |_| ExchangeError::Keys("the RSA key could not be generated".to_owned());
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(broken)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(broken)?;
        let inner = inner_key(der.as_ref())
            .ok_or_else(|| ExchangeError::Keys("the RSA key has an unexpected form".to_owned()))?;
        let bits = (u128::from(fastrand::u64(..)) << 64) | u128::from(fastrand::u64(..));
        Ok(Self {
            id: uuid_text(names::version4(bits)),
            pkcs8_pem: pem("PRIVATE KEY", der.as_ref()),
            pkcs1_pem: pem("RSA PRIVATE KEY", inner),
            public: pair.public_key().as_ref().to_vec(),
        })
    }
}

fn uuid_text(bits: u128) -> String {
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// The PKCS#1 key inside a PKCS#8 one: SEQUENCE { INTEGER, SEQUENCE, OCTET STRING { key } }.
fn inner_key(pkcs8: &[u8]) -> Option<&[u8]> {
    let (0x30, body, _) = element(pkcs8)? else {
        return None;
    };
    let (0x02, _, rest) = element(body)? else {
        return None;
    };
    let (0x30, _, rest) = element(rest)? else {
        return None;
    };
    let (0x04, key, _) = element(rest)? else {
        return None;
    };
    Some(key)
}

/// Splits the first DER element off: tag, contents, what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let fold = |sum: usize, &digit: &u8| sum.checked_mul(256)?.checked_add(digit.into());
        (digits.iter().try_fold(0, fold)?, rest)
    };
    let (body, rest) = rest.split_at_checked(length)?;
    Some((tag, body, rest))
}

/// Has no certificate for anybody.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// What the leaf says of whom, and when.
fn leaf(identity: Identity) -> Result<CertificateParams, rcgen::Error> {
    let names = match identity {
        Identity::OtherName => vec!["elsewhere.test".to_owned()],
        _ => ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
    };
    let mut leaf = CertificateParams::new(names)?;
    match identity {
        Identity::Expired => leaf.not_after = date_time_ymd(2020, 1, 1),
        Identity::Future => leaf.not_before = date_time_ymd(3020, 1, 1),
        Identity::Good | Identity::OtherName | Identity::None => {}
    }
    leaf.distinguished_name.push(DnType::CommonName, "localhost");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(leaf)
}

/// The authority's certificate in PEM and a server configuration signed by it.
pub(crate) fn tls(security: Security) -> Result<(String, Arc<ServerConfig>), ExchangeError> {
    let certs = |error: rcgen::Error| ExchangeError::Keys(format!("certificates: {error}"));
    let mut authority = CertificateParams::new(Vec::new()).map_err(certs)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "Exchange simulator CA");
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority_key = rcgen::KeyPair::generate().map_err(certs)?;
    let authority_cert = authority.self_signed(&authority_key).map_err(certs)?;
    let issuer = Issuer::new(authority, authority_key);

    let leaf_key = rcgen::KeyPair::generate().map_err(certs)?;
    let leaf_cert =
        leaf(security.identity).map_err(certs)?.signed_by(&leaf_key, &issuer).map_err(certs)?;

    let tls = |error: rustls::Error| ExchangeError::Keys(format!("TLS: {error}"));
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let version: &SupportedProtocolVersion =
        if security.version_13 { &version::TLS13 } else { &version::TLS12 };
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .map_err(tls)?
        .with_no_client_auth();
    let mut config = match security.identity {
        Identity::None => builder.with_cert_resolver(Arc::new(Nobody)),
        _ => builder.with_single_cert(vec![leaf_cert.der().clone()], private).map_err(tls)?,
    };
    if security.tickets {
        config.ticketer = Ticketer::new().map_err(tls)?;
    } else {
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
    }
    config.max_fragment_size = security.record_bytes;
    Ok((authority_cert.pem(), Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pem_forms_hold_the_same_key() {
        let key = ApiKey::generate().unwrap();
        assert!(key.pkcs8_pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert!(key.pkcs1_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
        let body: String = key.pkcs1_pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(body).unwrap();
        let pair = KeyPair::from_der(&der).unwrap();
        assert_eq!(pair.public_key().as_ref(), key.public);
        assert_eq!(key.id.len(), 36);
    }

    #[test]
    fn malformed_der_is_not_followed() {
        for der in [&[][..], &[0x30], &[0x30, 0x84, 0xff], &[0x30, 0x02, 0x02, 0x05]] {
            assert_eq!(inner_key(der), None);
        }
    }
}
