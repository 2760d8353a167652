//! Where to connect: the url, taken apart and judged once.

use rustls::pki_types::ServerName;

use crate::error::ConfigError;

/// Where to connect: the url, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    /// The name TLS verifies; none for plain text.
    pub(crate) tls_name: Option<ServerName<'static>>,
    default_port: bool,
}

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = |problem: String| ConfigError::Invalid { setting: "url", problem };
        let url = url::Url::parse(text).map_err(|error| {
            invalid(format!("{text:?} is not an address ({error}); write wss://host[:port]/path"))
        })?;
        let host = url.host().ok_or_else(|| invalid(format!("{text:?} names no host")))?;
        let tls = match url.scheme() {
            "wss" => true,
            "ws" => false,
            other => return Err(invalid(format!("scheme {other:?} is not wss; use wss://"))),
        };
        let loopback = match &host {
            url::Host::Domain(name) => *name == "localhost",
            url::Host::Ipv4(address) => address.is_loopback(),
            url::Host::Ipv6(address) => address.is_loopback(),
        };
        if !tls && !loopback {
            return Err(invalid("ws:// is unencrypted; use wss:// except to loopback".to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(invalid(
                "remove user, password and query: the headers carry the key".into(),
            ));
        }
        let host = match host {
            url::Host::Ipv6(address) => address.to_string(),
            other => other.to_string(),
        };
        let tls_name = tls
            .then(|| ServerName::try_from(host.clone()))
            .transpose()
            .map_err(|_| invalid(format!("{host:?} is not a name a certificate can carry")))?;
        Ok(Self {
            port: url.port_or_known_default().unwrap_or(443),
            path: url.path().to_owned(),
            default_port: url.port().is_none(),
            host,
            tls_name,
        })
    }

    /// The value of the Host header.
    pub(crate) fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.default_port { host } else { format!("{host}:{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        let endpoint = Endpoint::parse("wss://example.com/trade-api/ws/v2").unwrap();
        assert_eq!(endpoint.authority(), "example.com");
        assert_eq!((endpoint.port, endpoint.path.as_str()), (443, "/trade-api/ws/v2"));
        let endpoint = Endpoint::parse("ws://[::1]:9000/x").unwrap();
        assert_eq!(endpoint.authority(), "[::1]:9000");
        assert!(endpoint.tls_name.is_none());
    }
}
