//! Against clients of rustls, in memory; the properties of records on their own; the corpus.

use super::certificates::provider;
use super::fuzz::{pair, tls_records};
use super::record::{HEADER_BYTES, RECORD_BYTES_MAX};
use super::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A certificate that has signed itself, and its key.
struct Identity {
    der: CertificateDer<'static>,
    cert: String,
    key: String,
}

fn identity(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names.clone()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, names[0].as_str());
    change(&mut params);
    let cert = params.self_signed(&key).unwrap();
    Identity {
        der: cert.der().clone(),
        cert: pem("CERTIFICATE", cert.der()),
        key: pem("PRIVATE KEY", &key.serialize_der()),
    }
}

fn certificates(identities: &[&Identity]) -> Certificates {
    let mut certificates = Certificates::default();
    for identity in identities {
        certificates.add(identity.cert.as_bytes(), identity.key.as_bytes(), now_s()).unwrap();
    }
    certificates
}

fn acceptor(identity: &Identity, secret: &TicketSecret) -> Acceptor {
    Acceptor::new(certificates(&[identity]), None, secret).unwrap()
}

/// A client of one version and one suite.
fn client_config(identity: &Identity, version: Version, suite: Suite) -> ClientConfig {
    let mut all = provider();
    all.cipher_suites.retain(|offered| match offered.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => {
            suite == Suite::Aes128
        }
        CipherSuite::TLS13_AES_256_GCM_SHA384 | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => {
            suite == Suite::Aes256
        }
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            suite == Suite::ChaCha20
        }
        _ => false,
    });
    let mut roots = RootCertStore::empty();
    roots.add(identity.der.clone()).unwrap();
    let versions = match version {
        Version::Tls12 => &[&TLS12][..],
        Version::Tls13 => &[&TLS13],
    };
    ClientConfig::builder_with_provider(Arc::new(all))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn client(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(config.clone(), name.to_owned().try_into().unwrap()).unwrap()
}

/// The side of the gateway, as a shard drives it.
#[derive(Default)]
struct Server {
    handshake: Option<Handshake>,
    input: Vec<u8>,
    established: Option<Established>,
    failure: Option<Alert>,
    data: Vec<u8>,
    end: Option<End>,
    updates: u32,
    out: Vec<u8>,
}

impl Server {
    fn new(acceptor: &Acceptor) -> Self {
        Server { handshake: Handshake::new(acceptor), ..Server::default() }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        if let Some(handshake) = &mut self.handshake {
            if !handshake.has_something(&self.input) {
                return;
            }
            match handshake.step(&mut self.input, &mut self.out, now_s()) {
                Progress::Waits => return,
                Progress::Done(established) => self.established = Some(*established),
                Progress::Closed => self.end = Some(End::Closed),
                Progress::Failed(failure) => self.failure = Some(failure.alert),
            }
            self.handshake = None;
        }
        let Some(established) = &mut self.established else { return };
        let opened = open(&mut established.session.view(), &Bounds::STANDARD, &mut self.input, 0);
        self.data.extend_from_slice(&self.input[..opened.data]);
        self.input.drain(..opened.taken);
        self.updates += opened.updates;
        self.end = self.end.or(opened.end);
    }

    fn send(&mut self, kind: ContentType, bytes: &[u8]) {
        let view = &mut self.established.as_mut().unwrap().session.view();
        seal_owed(view, &Bounds::STANDARD, &mut self.out);
        let from = self.out.len();
        self.out.extend_from_slice(bytes);
        seal_records(view, kind, &mut self.out, from);
    }
}

/// What a client has to send, in pieces of so many bytes.
fn to_server(client: &mut ClientConnection, server: &mut Server, piece: usize) {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    for piece in bytes.chunks(piece) {
        server.take(piece);
    }
}

/// What a server has to send. Returns what the client can read of it.
fn to_client(server: &mut Server, client: &mut ClientConnection) -> Result<Vec<u8>, rustls::Error> {
    let out = std::mem::take(&mut server.out);
    let mut bytes = &out[..];
    let mut data = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        let state = client.process_new_packets()?;
        let mut plain = vec![0; state.plaintext_bytes_to_read()];
        client.reader().read_exact(&mut plain).unwrap();
        data.extend_from_slice(&plain);
    }
    Ok(data)
}

/// Shakes hands, in pieces of so many bytes.
fn connect(config: &Arc<ClientConfig>, acceptor: &Acceptor, piece: usize) -> (ClientConnection, Server) {
    let (mut client, mut server) = (client(config, "a.example"), Server::new(acceptor));
    for _ in 0..4 {
        to_server(&mut client, &mut server, piece);
        assert_eq!(to_client(&mut server, &mut client), Ok(Vec::new()));
    }
    assert!(!client.is_handshaking());
    (client, server)
}

const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

#[test]
fn every_version_and_suite_carries_data_both_ways_whatever_the_pieces() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    for (version, suite) in
        VERSIONS.into_iter().flat_map(|version| Suite::ALL.iter().map(move |suite| (version, *suite)))
    {
        let mut config = client_config(&identity, version, suite);
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        for piece in [1, 7, 4_096, usize::MAX] {
            let (mut client, mut server) = connect(&config, &acceptor, piece);
            let established = server.established.as_ref().unwrap();
            assert_eq!((established.version, established.suite, established.resumed), (version, suite, false));
            for length in [1, 63, 1_024, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 3 * RECORD_BYTES_MAX + 5] {
                let data: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
                client.writer().write_all(&data).unwrap();
                to_server(&mut client, &mut server, piece);
                assert!(server.data == data, "{length} bytes of a client, {version:?} {suite:?}");
                server.data.clear();
                server.send(ContentType::Data, &data);
                assert!(to_client(&mut server, &mut client).unwrap() == data, "{length} bytes, {version:?} {suite:?}");
            }
            client.send_close_notify();
            to_server(&mut client, &mut server, piece);
            assert_eq!(server.end, Some(End::Closed));
            server.send(ContentType::Alert, &Alert::CloseNotify.body());
            to_client(&mut server, &mut client).unwrap();
            assert_eq!(client.reader().read(&mut [0]).unwrap(), 0, "the end is one that was said");
        }
    }
}

#[test]
fn keys_change_both_ways_and_an_answer_that_is_owed_comes_first() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    for suite in Suite::ALL {
        let config = Arc::new(client_config(&identity, Version::Tls13, *suite));
        let (mut client, mut server) = connect(&config, &acceptor, usize::MAX);
        for round in 1..=5_u8 {
            client.refresh_traffic_keys().unwrap();
            client.writer().write_all(&[round; 100]).unwrap();
            to_server(&mut client, &mut server, 11);
            assert_eq!((server.updates, &server.data[..]), (round.into(), &[round; 100][..]), "{suite:?}");
            server.data.clear();
            let established = server.established.as_mut().unwrap();
            // As if the peer had asked for it, and as at the end of a key's life.
            let soon = Bounds { own_update_records: 0, ..Bounds::STANDARD };
            assert_eq!(seal_owed(&mut established.session.view(), &soon, &mut server.out), 1);
            server.send(ContentType::Data, b"under the next key");
            assert_eq!(to_client(&mut server, &mut client).unwrap(), b"under the next key", "{suite:?}");
        }
    }
}

#[test]
fn a_key_update_right_behind_the_handshake_is_not_swallowed_by_it() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    let config = Arc::new(client_config(&identity, Version::Tls13, Suite::Aes128));
    let (mut client, mut server) = (client(&config, "a.example"), Server::new(&acceptor));
    to_server(&mut client, &mut server, usize::MAX);
    to_client(&mut server, &mut client).unwrap();
    // Finished, KeyUpdate and data in one piece.
    client.refresh_traffic_keys().unwrap();
    client.writer().write_all(b"hello").unwrap();
    to_server(&mut client, &mut server, usize::MAX);
    assert_eq!((server.updates, &server.data[..]), (1, &b"hello"[..]));
    server.send(ContentType::Data, b"hello yourself");
    assert_eq!(to_client(&mut server, &mut client).unwrap(), b"hello yourself");
}

#[test]
fn a_session_is_resumed_at_another_node_with_the_same_secret_and_nowhere_else() {
    let identity = identity(&["a.example"], |_| {});
    let secret = TicketSecret::shared(b"the secret of a cluster");
    let nodes = [acceptor(&identity, &secret), acceptor(&identity, &secret)];
    let stranger = acceptor(&identity, &TicketSecret::random().unwrap());
    for version in VERSIONS {
        let config = Arc::new(client_config(&identity, version, Suite::Aes128));
        let resumed = |acceptor: &Acceptor| {
            let (mut client, mut server) = connect(&config, acceptor, usize::MAX);
            server.send(ContentType::Data, b"and data");
            assert_eq!(to_client(&mut server, &mut client).unwrap(), b"and data");
            let resumed = server.established.as_ref().unwrap().resumed;
            assert_eq!(resumed, client.handshake_kind() == Some(HandshakeKind::Resumed));
            resumed
        };
        assert!(!resumed(&nodes[0]), "{version:?}");
        assert!(resumed(&nodes[1]), "{version:?}");
        assert!(resumed(&nodes[0]), "{version:?}");
        assert!(!resumed(&stranger), "{version:?}");
    }
}

#[test]
fn the_application_protocol_is_agreed_on_or_the_handshake_fails() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    for (offered, agreed) in [
        (&[][..], Some((false, false))),
        (&["trunkline/1"], Some((true, false))),
        (&["h2", "http/1.1"], Some((false, true))),
        (&["http/1.1", "trunkline/1"], Some((true, false))),
        (&["h2", "mqtt"], None),
    ] {
        let mut config = client_config(&identity, Version::Tls13, Suite::Aes128);
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (mut client, mut server) = (client(&Arc::new(config), "a.example"), Server::new(&acceptor));
        to_server(&mut client, &mut server, usize::MAX);
        let read = to_client(&mut server, &mut client);
        match agreed {
            None => {
                assert_eq!(server.failure, Some(Alert::NoApplicationProtocol));
                let alert = rustls::AlertDescription::NoApplicationProtocol;
                assert_eq!(read, Err(rustls::Error::AlertReceived(alert)));
            }
            Some((native, http)) => {
                to_server(&mut client, &mut server, usize::MAX);
                let established = server.established.as_mut().unwrap();
                assert_eq!(
                    (established.session.view().facts.is_native(), established.http),
                    (native, http),
                    "{offered:?}"
                );
            }
        }
    }
}

#[test]
fn the_preferred_suite_and_a_post_quantum_exchange_are_taken_whatever_the_client_prefers() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    let mut all = provider();
    all.cipher_suites.reverse();
    let mut roots = RootCertStore::empty();
    roots.add(identity.der.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(all)).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let (client, server) = connect(&config, &acceptor, usize::MAX);
    assert_eq!(server.established.unwrap().suite, Suite::Aes128);
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn a_hello_in_many_records_is_taken_and_one_without_end_is_not() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    let config = Arc::new(client_config(&identity, Version::Tls13, Suite::Aes128));
    let (mut client, mut server) = (client(&config, "a.example"), Server::new(&acceptor));
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    for part in hello[HEADER_BYTES..].chunks(50) {
        server.take(&[&[22, 3, 1, 0, part.len() as u8], part].concat());
    }
    to_client(&mut server, &mut client).unwrap();
    to_server(&mut client, &mut server, usize::MAX);
    assert!(server.established.is_some());
    // A message of 16 MiB is announced, and comes in records.
    let mut server = Server::new(&acceptor);
    let mut first = true;
    for _ in 0..2_000 {
        let mut record = vec![22, 3, 1, 0, 100];
        record.extend_from_slice(&[7; 100]);
        if std::mem::take(&mut first) {
            record[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&[1, 0xFF, 0xFF, 0xFF]);
        }
        server.take(&record);
        if server.failure.is_some() {
            break;
        }
    }
    assert!(server.failure.is_some() && server.input.len() < 32 << 10);
}

#[test]
fn what_is_no_handshake_fails_with_an_alert_in_clear() {
    let identity = identity(&["a.example"], |_| {});
    let acceptor = acceptor(&identity, &TicketSecret::random().unwrap());
    for bytes in [
        &b"\x16GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\x05hello",
        b"\x17\x03\x03\0\x05hello",
        b"\x16\x03\x01\0\0",
        b"\x15\x03\x01\0\x02\x02\x28",
    ] {
        let mut server = Server::new(&acceptor);
        server.take(bytes);
        if server.failure.is_none() {
            // It may be that more was to come.
            server.take(&[0; 40]);
        }
        assert!(server.failure.is_some() || server.end.is_some(), "{bytes:?}");
        let by_peer = bytes[0] == 21;
        assert!(by_peer || (server.out.len() == 7 && server.out[0] == 21), "{bytes:?}: {:?}", server.out);
    }
}

#[test]
fn a_certificate_is_chosen_by_name_and_one_that_cannot_be_used_is_refused() {
    let (one, other) = (identity(&["a.example"], |_| {}), identity(&["*.b.example"], |_| {}));
    let acceptor = Acceptor::new(certificates(&[&one, &other]), None, &TicketSecret::random().unwrap()).unwrap();
    for (name, shown) in [("a.example", &one), ("x.b.example", &other)] {
        let config = Arc::new(client_config(shown, Version::Tls13, Suite::Aes128));
        let (mut client, mut server) = (client(&config, name), Server::new(&acceptor));
        to_server(&mut client, &mut server, usize::MAX);
        to_client(&mut server, &mut client).unwrap();
        assert_eq!(client.peer_certificates().unwrap()[0], shown.der, "{name}");
    }
    let mut none = Certificates::default();
    let now = now_s();
    let mut add = |cert: &str, key: &str, now| none.add(cert.as_bytes(), key.as_bytes(), now).unwrap_err();
    assert_eq!(add(&one.cert, &other.key, now), PairError::OtherKey);
    assert_eq!(add(&one.key, &one.key, now), PairError::NoCertificate);
    assert_eq!(add(&one.cert, &one.cert, now), PairError::NoKey);
    assert_eq!(add(&format!("{}{}", one.cert, other.cert), &one.key, now), PairError::OutOfOrder(1));
    let short = identity(&["c.example"], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    });
    assert!(matches!(add(&short.cert, &short.key, now), PairError::Expired(_)));
    assert!(matches!(add(&short.cert, &short.key, 0), PairError::NotYet(_)));
    assert_eq!(none.all().len(), 0);
}

#[test]
fn a_client_certificate_names_its_user() {
    let server_identity = identity(&["a.example"], |_| {});
    let ca_key = KeyPair::generate().unwrap();
    let mut ca_params = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca_params.self_signed(&ca_key).unwrap();
    let client_ca = ClientCa::parse(pem("CERTIFICATE", ca_cert.der()).as_bytes()).unwrap();
    let issuer = rcgen::Issuer::from_params(&ca_params, &ca_key);
    let acceptor =
        Acceptor::new(certificates(&[&server_identity]), Some(&client_ca), &TicketSecret::random().unwrap()).unwrap();
    for (uri, user) in
        [("urn:trunkline:user:42", Some(42)), ("urn:trunkline:user:0", None), ("https://a.example/42", None)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let cert = params.signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(server_identity.der.clone()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert.der().clone()], key)
            .unwrap();
        let (_, server) = connect(&Arc::new(config), &acceptor, usize::MAX);
        let certified = server.established.unwrap().certified;
        assert_eq!(certified.map(|(user, _)| user), user, "{uri}");
        assert_eq!(certified.map(|(_, until_s)| until_s), user.map(|_| 4_102_444_800));
    }
    // None at all is good as well: LOGIN has a token then.
    let config = Arc::new(client_config(&server_identity, Version::Tls13, Suite::Aes128));
    let (_, server) = connect(&config, &acceptor, usize::MAX);
    assert_eq!(server.established.unwrap().certified, None);
}

#[test]
fn a_client_certificate_that_was_revoked_or_has_run_out_is_refused_also_with_a_ticket_from_before() {
    let server_identity = identity(&["a.example"], |_| {});
    let ca_key = KeyPair::generate().unwrap();
    let mut ca_params = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = pem("CERTIFICATE", ca_params.self_signed(&ca_key).unwrap().der());
    let issuer = rcgen::Issuer::from_params(&ca_params, &ca_key);
    let config = |serial: u64, until| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI("urn:trunkline:user:42".try_into().unwrap())];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.serial_number, params.not_after) = (Some(serial.into()), until);
        let cert = params.signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(server_identity.der.clone()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert.der().clone()], key);
        Arc::new(config.unwrap())
    };
    let day = rcgen::date_time_ymd;
    let list = rcgen::CertificateRevocationListParams {
        this_update: day(2020, 1, 1),
        // It counts on although another one should have followed.
        next_update: day(2021, 1, 1),
        crl_number: 1u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: 7u64.into(),
            revocation_time: day(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = pem("X509 CRL", list.signed_by(&issuer).unwrap().der());
    let secret = TicketSecret::random().unwrap();
    let acceptor = |text: &str| {
        let ca = ClientCa::parse(text.as_bytes()).unwrap();
        Acceptor::new(certificates(&[&server_identity]), Some(&ca), &secret).unwrap()
    };
    let (before, after) = (acceptor(&ca_cert), acceptor(&format!("{ca_cert}{list}")));
    let (good, revoked, expired) = (config(6, day(2100, 1, 1)), config(7, day(2100, 1, 1)), config(8, day(2020, 1, 1)));
    let refusal = |config: &Arc<ClientConfig>, acceptor: &Acceptor| {
        let (mut client, mut server) = (client(config, "a.example"), Server::new(acceptor));
        for _ in 0..4 {
            to_server(&mut client, &mut server, usize::MAX);
            _ = to_client(&mut server, &mut client);
        }
        server.failure
    };
    assert_eq!(refusal(&expired, &before), Some(Alert::CertificateExpired));
    for (config, refused) in [(&good, None), (&revoked, Some(Alert::CertificateRevoked))] {
        // It gets a ticket before the list is there.
        assert_eq!([refusal(config, &before), refusal(config, &before)], [None, None]);
        assert_eq!(refusal(config, &after), refused);
    }
    assert!(ClientCa::parse(format!("{ca_cert}{}", pem("X509 CRL", b"nonsense")).as_bytes()).is_err());
}

#[test]
fn a_ticket_outlives_a_change_of_certificates_and_no_change_of_the_secret() {
    let (first, second) = (identity(&["a.example"], |_| {}), identity(&["a.example"], |_| {}));
    let switch = TlsSwitch::new(certificates(&[&first]), None, TicketSecret::shared(b"one")).unwrap();
    let mut reader = switch.reader();
    let config = Arc::new(client_config(&first, Version::Tls13, Suite::Aes128));
    let mut resumes = || connect(&config, reader.get(), usize::MAX).1.established.unwrap().resumed;
    assert_eq!([resumes(), resumes()], [false, true]);
    // A client that resumes is not shown the certificate, which it would not trust.
    switch.replace(certificates(&[&second]), None, None).unwrap();
    assert!(resumes());
    switch.replace(certificates(&[&first]), None, Some(TicketSecret::shared(b"another"))).unwrap();
    assert_eq!([resumes(), resumes()], [false, true]);
}

#[test]
fn a_handshake_goes_on_with_the_certificate_it_began_with() {
    let (first, second) = (identity(&["a.example"], |_| {}), identity(&["a.example"], |_| {}));
    let switch = TlsSwitch::new(certificates(&[&first]), None, TicketSecret::random().unwrap()).unwrap();
    let mut reader = switch.reader();
    let config = |identity| Arc::new(client_config(identity, Version::Tls12, Suite::Aes128));
    let (mut client, mut server) = (client(&config(&first), "a.example"), Server::new(reader.get()));
    to_server(&mut client, &mut server, usize::MAX);
    switch.replace(certificates(&[&second]), None, None).unwrap();
    for _ in 0..4 {
        assert_eq!(to_client(&mut server, &mut client), Ok(Vec::new()));
        to_server(&mut client, &mut server, usize::MAX);
    }
    assert!(server.established.is_some() && !client.is_handshaking());
    connect(&config(&second), reader.get(), usize::MAX);
}

/// One end seals some content, the other opens it.
fn sealed(session: &mut Session, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut out = content.to_vec();
    seal_records(&mut session.view(), kind, &mut out, 0);
    out
}

fn opened(session: &mut Session, mut bytes: Vec<u8>, minute: u32) -> (Vec<u8>, Option<End>) {
    let opened = open(&mut session.view(), &Bounds::STANDARD, &mut bytes, minute);
    (bytes[..opened.data].to_vec(), opened.end)
}

#[test]
fn one_bit_anywhere_in_a_record_is_noticed() {
    for (version, suite) in
        VERSIONS.into_iter().flat_map(|version| Suite::ALL.iter().map(move |suite| (version, *suite)))
    {
        let (mut one, _) = pair(version, suite);
        let record = sealed(&mut one, ContentType::Data, b"some data");
        for bit in 0..record.len() * 8 {
            let (_, mut other) = pair(version, suite);
            let mut broken = record.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            // A shorter or longer record may not have come whole.
            broken.extend_from_slice(&[0; 70_000]);
            let (data, end) = opened(&mut other, broken, 0);
            let version_byte = bit / 8 == 2 && version == Version::Tls12;
            assert!(
                version_byte || (data.is_empty() && matches!(end, Some(End::Violated(_)))),
                "{version:?} bit {bit}"
            );
        }
    }
}

#[test]
fn a_key_update_may_come_in_parts_and_ends_its_record() {
    let update = |asks: u8| [24, 0, 0, 1, asks];
    let (mut one, mut other) = pair(Version::Tls13, Suite::Aes128);
    for byte in update(1) {
        let record = sealed(&mut one, ContentType::Handshake, &[byte]);
        assert_eq!(opened(&mut other, record, 0), (vec![], None));
    }
    let mut view = other.view();
    assert!(view.facts.owes());
    let mut answer = Vec::new();
    assert_eq!(seal_owed(&mut view, &Bounds::STANDARD, &mut answer), 1);
    assert!(!answer.is_empty() && !view.facts.owes());

    for (content, alert) in [
        (&[24, 0, 0, 1, 2][..], Alert::IllegalParameter),
        (&[24, 0, 0, 1, 0, 24][..], Alert::UnexpectedMessage),
        (&[24, 0, 0, 2, 0, 0][..], Alert::UnexpectedMessage),
        (&[1, 0, 0, 1, 0][..], Alert::UnexpectedMessage),
    ] {
        let (mut one, mut other) = pair(Version::Tls13, Suite::Aes128);
        let record = sealed(&mut one, ContentType::Handshake, content);
        assert_eq!(opened(&mut other, record, 0), (vec![], Some(End::Violated(alert))), "{content:?}");
    }
    // Nothing comes between its parts.
    let (mut one, mut other) = pair(Version::Tls13, Suite::Aes128);
    let records =
        [sealed(&mut one, ContentType::Handshake, &[24, 0]), sealed(&mut one, ContentType::Data, b"x")].concat();
    assert_eq!(opened(&mut other, records, 0), (vec![], Some(End::Violated(Alert::UnexpectedMessage))));
}

#[test]
fn updates_and_empty_records_are_bounded() {
    let (mut one, mut other) = pair(Version::Tls13, Suite::ChaCha20);
    let update = |one: &mut Session| {
        let record = sealed(one, ContentType::Handshake, &[24, 0, 0, 1, 0]);
        one.view().tx.update(Suite::ChaCha20);
        record
    };
    for minute in 0..2 {
        for _ in 0..Bounds::STANDARD.updates_per_minute {
            let record = update(&mut one);
            assert_eq!(opened(&mut other, record, minute), (vec![], None));
        }
    }
    let record = update(&mut one);
    assert_eq!(opened(&mut other, record, 1).1, Some(End::Violated(Alert::UnexpectedMessage)));

    // Nobody here makes empty records: one of 1.2 is a record of no data, sealed by hand.
    let (mut one, mut other) = pair(Version::Tls12, Suite::ChaCha20);
    for count in 1..=u32::from(Bounds::STANDARD.empties_max) + 1 {
        let mut record = vec![23, 3, 3, 0, 16];
        let view = one.view();
        let aad = super::open::tls12_aad(*view.tx.sequence, ContentType::Data, 0);
        let key = view.tx.cipher(Suite::ChaCha20);
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(view.tx.nonce());
        let tag = key.seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(aad), &mut []).unwrap();
        record.extend_from_slice(tag.as_ref());
        *view.tx.sequence += 1;
        let end = opened(&mut other, record, 0).1;
        let bounded = count > u32::from(Bounds::STANDARD.empties_max);
        assert_eq!(end.is_some(), bounded, "{count} empty records: {end:?}");
    }
}

#[test]
fn one_who_asks_to_renegotiate_is_warned_and_goes_on() {
    let (mut one, mut other) = pair(Version::Tls12, Suite::Aes256);
    let hello = sealed(&mut one, ContentType::Handshake, &[1, 0, 0, 0]);
    assert_eq!(opened(&mut other, hello, 0), (vec![], None));
    let mut view = other.view();
    assert!(view.facts.owes());
    let mut warning = Vec::new();
    assert_eq!(seal_owed(&mut view, &Bounds::STANDARD, &mut warning), 0);
    let data = sealed(&mut other, ContentType::Data, b"on we go");
    // A warning that nobody reacts to.
    assert_eq!(opened(&mut one, [warning, data].concat(), 0), (b"on we go".to_vec(), None));
}

#[test]
fn keys_that_are_worn_are_changed_or_the_connection_ends() {
    let bounds = Bounds { own_update_records: 4, tls12_records_max: 4, ..Bounds::STANDARD };
    let (mut one, mut other) = pair(Version::Tls13, Suite::Aes128);
    let mut updates = 0;
    for _ in 0..20 {
        let mut out = Vec::new();
        updates += seal_owed(&mut one.view(), &bounds, &mut out);
        let from = out.len();
        out.extend_from_slice(b"data");
        seal_records(&mut one.view(), ContentType::Data, &mut out, from);
        assert_eq!(opened(&mut other, out, 0), (b"data".to_vec(), None));
    }
    assert!(updates >= 4);
    let (mut one, mut other) = pair(Version::Tls12, Suite::Aes128);
    let records = sealed(&mut one, ContentType::Data, &[1; 5 * RECORD_BYTES_MAX]);
    assert!(one.view().is_worn_out(&bounds));
    let mut bytes = records;
    let opened = open(&mut other.view(), &bounds, &mut bytes, 0);
    assert_eq!((opened.data, opened.end), (3 * RECORD_BYTES_MAX, Some(End::WornOut)));
}

#[test]
fn padding_is_taken_off_and_too_long_a_record_is_refused() {
    // Sealed as data, with a type of its own and padding behind it.
    for (length, padding, well) in
        [(5, 100, true), (0, 0, true), (RECORD_BYTES_MAX, 0, true), (RECORD_BYTES_MAX, 1, false)]
    {
        let (mut one, mut other) = pair(Version::Tls13, Suite::Aes128);
        let view = one.view();
        let mut inner = vec![9; length];
        inner.push(ContentType::Data as u8);
        inner.resize(length + 1 + padding, 0);
        let header = [23, 3, 3, ((inner.len() + 16) >> 8) as u8, (inner.len() + 16) as u8];
        let key = view.tx.cipher(Suite::Aes128);
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(view.tx.nonce());
        let tag = key.seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(header), &mut inner).unwrap();
        let record = [&header[..], &inner, tag.as_ref()].concat();
        let (data, end) = opened(&mut other, record, 0);
        match well {
            true => assert_eq!((data, end), (vec![9; length], None)),
            false => assert_eq!(end, Some(End::Violated(Alert::RecordOverflow))),
        }
    }
    let (_, mut other) = pair(Version::Tls13, Suite::Aes128);
    assert_eq!(opened(&mut other, vec![23, 3, 3, 0x41, 1], 0).1, Some(End::Violated(Alert::RecordOverflow)));
}

#[test]
fn where_a_record_ends_is_known_before_it_is_sealed() {
    for (version, suite) in
        VERSIONS.into_iter().flat_map(|version| Suite::ALL.iter().map(move |suite| (version, *suite)))
    {
        for all in [1, 100, RECORD_BYTES_MAX - 1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 2 * RECORD_BYTES_MAX + 9] {
            let (mut one, _) = pair(version, suite);
            for end in [1, 99, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, all].into_iter().filter(|end| *end <= all) {
                let told = sealed_end(&one.view(), all, end);
                let (mut fresh, _) = pair(version, suite);
                let records = sealed(&mut fresh, ContentType::Data, &vec![0; all]);
                let mut at = 0;
                for _ in 0..end.div_ceil(RECORD_BYTES_MAX) {
                    at += super::record::whole_record(&records[at..]).unwrap().unwrap();
                }
                assert_eq!(told, at, "{end} of {all}, {version:?} {suite:?}");
            }
        }
    }
}

#[test]
fn keys_are_found_by_slot_and_gone_when_they_are_taken() {
    let mut sessions = Sessions::default();
    let mut held = Vec::new();
    for slot in 0..2_000_u32 {
        let suite = Suite::ALL[slot as usize % SUITES];
        let (mut session, _) = pair(Version::Tls13, suite);
        *session.view().tx.sequence = u64::from(slot);
        sessions.put(slot, &session);
        held.push(suite);
    }
    for slot in (0..2_000).step_by(3) {
        sessions.remove(slot);
        assert!(sessions.view(slot).is_none());
    }
    assert_eq!(sessions.len(), 2_000 - 667);
    for slot in (1..2_000).step_by(3) {
        let mut session = sessions.take(slot).unwrap();
        let view = session.view();
        assert_eq!((view.suite, *view.tx.sequence), (held[slot as usize], slot.into()));
        assert!(sessions.take(slot).is_none() && sessions.view(slot).is_none());
    }
    for slot in (2..2_000).step_by(3) {
        let view = sessions.view(slot).unwrap();
        assert_eq!((view.suite, *view.tx.sequence), (held[slot as usize], slot.into()));
    }
    assert!(sessions.view(5_000).is_none());
}

#[test]
fn any_input_keeps_the_properties_of_records() {
    // A small generator: the same inputs each time.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..400 {
        let length = next() as usize % 200;
        let input: Vec<u8> = (0..length).map(|_| next() as u8).collect();
        tls_records(&input);
    }
}
