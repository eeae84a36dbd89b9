//! Where a broker is: URLs read strictly, and shown without their passwords.
//!
//! lapin's own parser takes an IPv6 literal for `localhost`, and prints passwords; hence ours.
//! <https://www.rabbitmq.com/docs/uri-spec>

use std::fmt;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

/// One broker node. `Display` is `host:port/vhost`; there is no way to print the password.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    password: SecretString,
    pub(super) vhost: String,
}

impl Endpoint {
    /// The form that lapin wants, with the heartbeat in seconds.
    pub(super) fn uri(&self, heartbeat: u16) -> AMQPUri {
        AMQPUri {
            scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.user.clone(),
                    password: self.password.expose_secret().to_owned(),
                },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(heartbeat), ..AMQPQueryString::default() },
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.vhost.starts_with('/') { "" } else { "/" };
        if self.host.contains(':') {
            write!(f, "[{}]:{}{slash}{}", self.host, self.port, self.vhost)
        } else {
            write!(f, "{}:{}{slash}{}", self.host, self.port, self.vhost)
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads URLs that are separated by commas.
///
/// # Errors
/// The text says which URL (by number, for it may hold a password) is wrong and how to mend it.
pub(super) fn parse(urls: &str, password: Option<&SecretString>) -> Result<Vec<Endpoint>, String> {
    urls.split(',')
        .map(str::trim)
        .enumerate()
        .map(|(n, url)| one(url, password).map_err(|fault| format!("URL {} {fault}", n + 1)))
        .collect()
}

fn one(url: &str, password: Option<&SecretString>) -> Result<Endpoint, String> {
    let (tls, rest) = match url.split_once("://") {
        Some(("amqp", rest)) => (false, rest),
        Some(("amqps", rest)) => (true, rest),
        _ => return Err("does not start with amqp:// or amqps://".into()),
    };
    if rest.contains(['?', '#']) {
        return Err("has a query: use the settings instead, or write ? as %3F and # as %23".into());
    }
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    };
    let (userinfo, address) = match authority.rsplit_once('@') {
        Some((userinfo, address)) => (Some(userinfo), address),
        None => (None, authority),
    };
    let (user, own_password) = match userinfo.map(|info| info.split_once(':').unwrap_or((info, "")))
    {
        Some((user, own)) => (decoded(user, "user")?, decoded(own, "password")?),
        None => ("guest".into(), "guest".into()),
    };
    let (host, port) = host_and_port(address)?;
    let vhost = match path {
        // By the letter of the specification `amqp://host/` is the vhost with the empty name.
        // Nobody has one, and everybody who writes it means `/`.
        None | Some("") => "/".to_owned(),
        Some(path) if path.contains('/') => {
            return Err("has a / within its vhost, write %2F".into());
        }
        Some(path) => decoded(path, "vhost")?,
    };
    if vhost.len() > 255 {
        return Err("has a vhost of more than 255 bytes".into());
    }
    Ok(Endpoint {
        tls,
        host,
        port: port.unwrap_or(if tls { 5671 } else { 5672 }),
        user,
        password: password.cloned().unwrap_or_else(|| own_password.into()),
        vhost,
    })
}

fn host_and_port(address: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has [ without ] in its host")?;
        match after.strip_prefix(':') {
            None if after.is_empty() => (host, None),
            Some(port) => (host, Some(port)),
            None => return Err("has something other than :port after ]".into()),
        }
    } else {
        match address.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("has a bare IPv6 address, put it in brackets: [::1]".into());
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    if host.is_empty() {
        return Err("has no host".into());
    }
    let port = port
        .map(|port| {
            port.parse::<u16>()
                .map_err(|_| "has a port that is not a number up to 65535".to_owned())
        })
        .transpose()?;
    Ok((decoded(host, "host")?, port))
}

fn decoded(text: &str, what: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| format!("has a {what} that is not UTF-8 after percent-decoding"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    fn shown(url: &str) -> String {
        parse(url, None).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn hosts_ports_and_vhosts_are_read_as_written() {
        for (url, expected) in [
            ("amqp://broker", "broker:5672/"),
            ("amqps://u:p@broker", "broker:5671/"),
            ("amqp://u:p@broker:1234/", "broker:1234/"),
            ("amqp://u:p@broker/%2f", "broker:5672/"),
            ("amqp://u:p@broker/orders", "broker:5672/orders"),
            ("amqp://u:p@[::1]:5673/x", "[::1]:5673/x"),
            ("amqp://u@a:1/v, amqp://u@b:2/v", "a:1/v b:2/v"),
        ] {
            assert_eq!(shown(url), expected, "{url}");
        }
    }

    #[test]
    fn an_ipv6_literal_reaches_lapin_as_itself() {
        let endpoint = parse("amqp://[fe80::1]/", None).unwrap().remove(0);
        assert_eq!(endpoint.uri(10).authority.host, "fe80::1");
    }

    #[test]
    fn a_password_is_decoded_used_and_never_shown() {
        let endpoint = parse("amqp://user:p%40ss%2Cw@broker/", None).unwrap().remove(0);
        assert_eq!(endpoint.uri(10).authority.userinfo.password, "p@ss,w");
        assert!(!format!("{endpoint} {endpoint:?}").contains("p@ss"));

        let other = SecretString::from("other");
        let endpoint = parse("amqp://user:old@broker/", Some(&other)).unwrap().remove(0);
        assert_eq!(endpoint.uri(10).authority.userinfo.password, "other");
    }

    #[test]
    fn a_wrong_url_is_refused_without_repeating_it() {
        for url in [
            "",
            "broker:5672",
            "http://u:secret@broker",
            "amqp://u:secret@broker/a/b",
            "amqp://u:secret@broker?heartbeat=1",
            "amqp://u:secret@::1:5672",
            "amqp://u:secret@broker:99999",
            "amqp://u:secret@:5672",
            "amqp://u:secret@[::1",
            "amqp://u:%ff@broker",
        ] {
            let fault = parse(url, None).unwrap_err();
            assert!(fault.starts_with("URL 1 ") && !fault.contains("secret"), "{url}: {fault}");
        }
    }
}
