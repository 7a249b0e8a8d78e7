//! Certificates, and clients over TLS of rustls.

use super::PATIENCE;
use super::gateway::Gateway;
use super::scratch::ScratchFile;
use super::wire::{self, Frame, Login, LoginOk};
use base64::Engine;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// A certificate that has signed itself, and its key, in files.
pub(crate) struct Identity {
    pub(crate) cert: ScratchFile,
    pub(crate) key: ScratchFile,
}

impl Identity {
    /// For this machine, for a year to come.
    pub(crate) fn new() -> Self {
        Identity::until(2100)
    }

    /// Which expired long ago.
    pub(crate) fn expired() -> Self {
        Identity::until(2020)
    }

    fn until(year: i32) -> Self {
        let key = KeyPair::generate().expect("a key");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("good names");
        (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(year, 1, 1));
        let cert = params.self_signed(&key).expect("a certificate");
        Identity {
            cert: ScratchFile::new("cert.pem", pem("CERTIFICATE", cert.der())),
            key: ScratchFile::new("key.pem", pem("PRIVATE KEY", &key.serialize_der())),
        }
    }

    /// The flags of a gateway that shows it.
    pub(crate) fn flags(&self) -> [&str; 4] {
        ["--tls-cert", self.cert.path(), "--tls-key", self.key.path()]
    }

    /// A client that trusts it.
    pub(crate) fn config(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> Arc<ClientConfig> {
        trusting(self.cert.path(), versions, alpn)
    }

    /// The same, of HTTP.
    pub(crate) fn any_of_http(&self) -> Arc<ClientConfig> {
        self.config(rustls::ALL_VERSIONS, &["http/1.1"])
    }

    /// A client that trusts it, and leaves all else to the gateway.
    pub(crate) fn any(&self) -> Arc<ClientConfig> {
        self.config(rustls::ALL_VERSIONS, &["trunkline/1"])
    }
}

/// A client that trusts the certificate in a file.
pub(crate) fn trusting(path: &str, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path).expect("a certificate")).expect("one to trust");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A stream over TLS to the ports for clients.
pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn stream(config: &Arc<ClientConfig>, address: SocketAddr) -> TlsStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
    let connection = ClientConnection::new(config.clone(), "localhost".try_into().expect("a name")).expect("a client");
    StreamOwned::new(connection, stream)
}

/// A client that speaks native frames over TLS. Reads and writes fail the test after `PATIENCE`.
pub(crate) struct TlsClient {
    pub(crate) stream: TlsStream,
    unread: Vec<u8>,
    frames: VecDeque<Frame>,
}

impl TlsClient {
    pub(crate) fn connect(gateway: &Gateway, config: &Arc<ClientConfig>) -> Self {
        TlsClient::connect_to(gateway.client_address(), config)
    }

    pub(crate) fn connect_to(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        TlsClient { stream: stream(config, address), unread: Vec::new(), frames: VecDeque::new() }
    }

    /// One that a proxy speaks for: what it writes first goes out with these bytes in front, all of it but for a pause
    /// after `split` bytes.
    pub(crate) fn connect_behind(gateway: &Gateway, config: &Arc<ClientConfig>, header: &[u8], split: usize) -> Self {
        let mut client = TlsClient::connect(gateway, config);
        let mut bytes = header.to_vec();
        client.stream.conn.write_tls(&mut bytes).expect("a ClientHello");
        let (first, rest) = bytes.split_at(split.min(bytes.len()));
        client.stream.sock.write_all(first).expect("write to the gateway");
        if !first.is_empty() && !rest.is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
        client.stream.sock.write_all(rest).expect("write to the gateway");
        client
    }

    pub(crate) fn login(gateway: &Gateway, config: &Arc<ClientConfig>, user: u64) -> Self {
        TlsClient::login_with(gateway, config, &Login::of(user)).0
    }

    pub(crate) fn login_with(gateway: &Gateway, config: &Arc<ClientConfig>, login: &Login) -> (Self, LoginOk) {
        let mut client = TlsClient::connect(gateway, config);
        client.write(&login.frame());
        let login_ok = LoginOk::parse(&client.recv());
        (client, login_ok)
    }

    pub(crate) fn write(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.encode()).expect("write to the gateway");
    }

    /// The next frame; `None` at an end that was said with close_notify.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let mut buffer = [0; 65_536];
            // An end that was not said is an error of rustls's.
            let length = self.stream.read(&mut buffer).expect("read from the gateway");
            if length == 0 {
                assert!(self.unread.is_empty(), "closed within a frame: {:?}", self.unread);
                return None;
            }
            self.unread.extend_from_slice(&buffer[..length]);
            let mut taken = 0;
            while let Some((frame, length)) = Frame::decode(&self.unread[taken..]) {
                taken += length;
                self.frames.push_back(frame);
            }
            self.unread.drain(..taken);
        }
    }

    pub(crate) fn recv(&mut self) -> Frame {
        self.next().expect("a frame")
    }

    pub(crate) fn recv_kind(&mut self, kind: u8) -> Frame {
        let frame = self.recv();
        assert_eq!(frame.kind, kind, "expected kind {kind:#04x}, got {frame:?}");
        frame
    }

    /// Sends a PING and expects nothing before its PONG.
    pub(crate) fn ping(&mut self) {
        self.write(&wire::ping(3));
        assert_eq!(self.recv_kind(wire::kind::PONG).aux, 3);
    }

    /// The next frame must be a BYE with this reason, and behind it the end must be said.
    pub(crate) fn expect_bye(&mut self, reason: u16) {
        let bye = self.recv_kind(wire::kind::BYE);
        assert_eq!(bye.aux, reason, "{}", wire::bye_text(&bye));
        assert_eq!(self.next(), None);
    }
}
