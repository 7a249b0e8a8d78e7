//! The handshake between two machines, with every way it can fail and every way to cheat it.

use super::*;
use crate::mesh::seal::Forged;
use crate::mesh::wire::tests::unhex;
use proptest::collection::vec;
use proptest::prelude::*;

const SECRET: &[u8] = b"a secret of the whole cluster";
const PATIENCE_MS: u64 = DEADLINE_MS_DEFAULT;

/// What differs from test to test.
#[derive(Clone)]
struct Setup {
    dialer: Identity,
    acceptor: Identity,
    dialer_secret: &'static [u8],
    acceptor_secret: &'static [u8],
    acceptor_second: Option<&'static [u8]>,
    dial: Dial,
    /// The acceptor's part of the answer.
    incarnation_known: u64,
    answer: ResumeState,
}

fn identity(name: &str, incarnation: u64) -> Identity {
    Identity { name: name.into(), incarnation, versions: Versions { min: 1, max: 1 } }
}

fn setup() -> Setup {
    Setup {
        dialer: identity("alpha", 5),
        acceptor: identity("beta", 9),
        dialer_secret: SECRET,
        acceptor_secret: SECRET,
        acceptor_second: None,
        dial: Dial {
            peer: "beta".into(),
            peer_incarnation_known: 9,
            link: 3,
            resume: ResumeState { stream: 77, expected: 12 },
        },
        incarnation_known: 5,
        answer: ResumeState { stream: 77, expected: 34 },
    }
}

impl Setup {
    fn dialer(&self, nonce: u8, out: &mut Vec<u8>) -> Dialer {
        let secret = ClusterSecret::new(self.dialer_secret).unwrap();
        Dialer::new(secret, self.dialer.clone(), self.dial.clone(), &[nonce; 32], 100, PATIENCE_MS, out)
    }

    fn acceptor(&self, nonce: u8) -> Acceptor {
        let secrets = std::iter::once(self.acceptor_secret).chain(self.acceptor_second);
        let known = Secrets::new(secrets).unwrap().known();
        Acceptor::new(known, self.acceptor.clone(), [nonce; 32], 100, PATIENCE_MS)
    }
}

/// How a handshake ended on either side, and what was said.
#[derive(Debug)]
struct Ended {
    dialer: Option<Result<Established, HandshakeError>>,
    acceptor: Option<Result<Established, HandshakeError>>,
    /// The frames in the order they were sent, the dialer's first.
    said: Vec<Vec<u8>>,
    claim: Option<Claim>,
}

/// Runs a handshake whose bytes come in pieces of `pieces`.
fn run(setup: &Setup, pieces: usize) -> Ended {
    let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
    let mut dialer = setup.dialer(1, &mut to_acceptor);
    let mut acceptor = setup.acceptor(2);
    let mut ended = Ended { dialer: None, acceptor: None, said: Vec::new(), claim: None };
    while !to_acceptor.is_empty() || !to_dialer.is_empty() {
        let bytes = std::mem::take(&mut to_acceptor);
        for piece in bytes.chunks(pieces) {
            match acceptor.received(piece, &mut to_dialer) {
                _ if ended.acceptor.is_some() => {}
                Ok(AcceptorStep::More) => {}
                Ok(AcceptorStep::Claimed(claim)) => {
                    ended.claim = Some(claim);
                    ended.acceptor = Some(acceptor.admit(setup.incarnation_known, setup.answer, &mut to_dialer));
                    break;
                }
                Err(error) => ended.acceptor = Some(Err(error)),
            }
        }
        ended.said.push(bytes);
        let bytes = std::mem::take(&mut to_dialer);
        for piece in bytes.chunks(pieces) {
            match dialer.received(piece, &mut to_acceptor) {
                _ if ended.dialer.is_some() => to_acceptor.clear(),
                Ok(DialerStep::More) => {}
                Ok(DialerStep::Done { established, consumed }) => {
                    assert_eq!(consumed, piece.len());
                    ended.dialer = Some(Ok(established));
                }
                Err(error) => ended.dialer = Some(Err(error)),
            }
        }
        ended.said.push(bytes);
    }
    ended
}

/// The error of a handshake that the acceptor refuses; the dialer hears of it.
fn refused_by_acceptor(setup: &Setup) -> HandshakeError {
    let ended = run(setup, usize::MAX);
    let Some(Err(error)) = ended.acceptor else { panic!("{ended:?}") };
    let Some(Err(HandshakeError::Refused { code, .. })) = ended.dialer else { panic!("{:?}", ended.dialer) };
    assert_eq!(code, error.code());
    error
}

fn refused_by_dialer(setup: &Setup) -> HandshakeError {
    let ended = run(setup, usize::MAX);
    let Some(Err(error)) = ended.dialer else { panic!("{ended:?}") };
    error
}

#[test]
fn both_sides_agree_at_every_split() {
    for pieces in (1..120).chain([usize::MAX]) {
        let ended = run(&setup(), pieces);
        let dialer = ended.dialer.unwrap().unwrap();
        let acceptor = ended.acceptor.unwrap().unwrap();
        let resume = ResumeState { stream: 77, expected: 34 };
        let (link, version) = (3, 1);
        assert_eq!(dialer, Established { peer: "beta".into(), peer_incarnation: 9, version, link, resume });
        let resume = ResumeState { stream: 77, expected: 12 };
        assert_eq!(acceptor, Established { peer: "alpha".into(), peer_incarnation: 5, version, link, resume });
    }
}

#[test]
fn while_a_secret_is_changed_either_is_accepted() {
    const OTHER: &[u8] = b"another secret of enough bytes";
    for (first, second) in [(SECRET, OTHER), (OTHER, SECRET)] {
        let setup = Setup { acceptor_secret: first, acceptor_second: Some(second), ..setup() };
        let ended = run(&setup, usize::MAX);
        assert!(matches!((ended.dialer, ended.acceptor), (Some(Ok(_)), Some(Ok(_)))));
        let unknown = Setup { dialer_secret: b"a third secret of enough bytes", ..setup };
        assert_eq!(refused_by_acceptor(&unknown), HandshakeError::WrongSecret);
    }
}

#[test]
fn a_fresh_stream_begins_at_its_first_record_on_both_sides() {
    let setup = Setup { answer: ResumeState { stream: 1_234, expected: 0 }, ..setup() };
    let ended = run(&setup, usize::MAX);
    let fresh = ResumeState { stream: 1_234, expected: 0 };
    assert_eq!(ended.claim.unwrap().resume, ResumeState { stream: 77, expected: 12 });
    assert_eq!(ended.dialer.unwrap().unwrap().resume, fresh);
    assert_eq!(ended.acceptor.unwrap().unwrap().resume, fresh);
}

#[test]
fn bytes_of_the_link_behind_the_last_frame_are_left_to_it() {
    let setup = setup();
    let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
    let mut dialer = setup.dialer(1, &mut to_acceptor);
    let mut acceptor = setup.acceptor(2);
    for _ in 0..3 {
        acceptor.received(&std::mem::take(&mut to_acceptor), &mut to_dialer).unwrap();
        if to_dialer.is_empty() {
            break;
        }
        dialer.received(&std::mem::take(&mut to_dialer), &mut to_acceptor).unwrap();
    }
    acceptor.admit(0, setup.answer, &mut to_dialer).unwrap();
    let own = to_dialer.len();
    to_dialer.extend_from_slice(b"the first batch");
    match dialer.received(&to_dialer, &mut to_acceptor) {
        Ok(DialerStep::Done { consumed, .. }) => assert_eq!(consumed, own),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_secret_that_is_too_short_or_too_long_is_refused_with_the_fix() {
    assert_eq!(ClusterSecret::new(&[1; 15]).unwrap_err(), SecretError::TooShort { length: 15 });
    assert_eq!(ClusterSecret::new(&[1; 1_025]).unwrap_err(), SecretError::TooLong { length: 1_025 });
    assert!(ClusterSecret::new(&[1; 16]).is_ok() && ClusterSecret::new(&[1; 1_024]).is_ok());
    for error in [SecretError::TooShort { length: 3 }, SecretError::TooLong { length: 3_000 }] {
        assert!(error.to_string().contains("--cluster-secret-file"), "{error}");
    }
    assert_eq!(format!("{:?}", ClusterSecret::new(SECRET).unwrap()), "ClusterSecret(…)");
}

#[test]
fn a_wrong_secret_lets_nobody_in_on_either_side() {
    let setup = Setup { dialer_secret: b"some other secret", ..setup() };
    assert_eq!(refused_by_acceptor(&setup), HandshakeError::WrongSecret);

    // An acceptor that does not check proves nothing to the dialer.
    let mut out = Vec::new();
    let mut dialer = setup.dialer(1, &mut out);
    let mut honest = setup.acceptor(2);
    let mut answers = Vec::new();
    honest.received(&out, &mut answers).unwrap();
    HandshakeFrame::Proof { mac: &[9; 32] }.encode(&mut answers);
    assert_eq!(dialer.received(&answers, &mut Vec::new()), Err(HandshakeError::WrongSecret));
}

#[test]
fn the_highest_common_version_is_chosen_and_none_is_an_error() {
    let versions = |dialer: (u16, u16), acceptor: (u16, u16)| {
        let mut setup = setup();
        setup.dialer.versions = Versions { min: dialer.0, max: dialer.1 };
        setup.acceptor.versions = Versions { min: acceptor.0, max: acceptor.1 };
        setup
    };
    for (dialer, acceptor, version) in [((1, 3), (2, 5), 3), ((4, 9), (1, 4), 4), ((2, 2), (1, 3), 2)] {
        let ended = run(&versions(dialer, acceptor), usize::MAX);
        assert_eq!(ended.dialer.unwrap().unwrap().version, version);
        assert_eq!(ended.acceptor.unwrap().unwrap().version, version);
    }
    let error = refused_by_acceptor(&versions((1, 1), (2, 3)));
    let (own, theirs) = (Versions { min: 2, max: 3 }, Versions { min: 1, max: 1 });
    assert_eq!(error, HandshakeError::Version { own, theirs });
}

#[test]
fn a_version_changed_on_the_way_is_noticed() {
    let mut setup = setup();
    setup.dialer.versions.max = 4;
    setup.acceptor.versions.max = 4;
    let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
    let mut dialer = setup.dialer(1, &mut to_acceptor);
    let mut acceptor = setup.acceptor(2);
    to_acceptor[12] = 1; // the dialer's version_max
    acceptor.received(&std::mem::take(&mut to_acceptor), &mut to_dialer).unwrap();
    to_dialer[12] = 1; // and the acceptor's
    dialer.received(&std::mem::take(&mut to_dialer), &mut to_acceptor).unwrap();
    assert_eq!(acceptor.received(&to_acceptor, &mut to_dialer), Err(HandshakeError::WrongSecret));
}

#[test]
fn ones_own_name_is_refused_by_the_acceptor_and_by_the_dialer() {
    let mut setup = setup();
    setup.dialer.name = "beta".into();
    assert_eq!(refused_by_acceptor(&setup), HandshakeError::OwnName { name: "beta".into() });

    // The dialer's own bytes come back to it.
    let mut out = Vec::new();
    let mut dialer = setup.dialer(1, &mut out);
    let echo = dialer.received(&out.clone(), &mut out);
    assert_eq!(echo, Err(HandshakeError::OwnName { name: "beta".into() }));
}

#[test]
fn another_node_than_the_one_dialed_is_refused_without_naming_that_one() {
    let mut setup = setup();
    setup.acceptor.name = "gamma".into();
    let error = refused_by_dialer(&setup);
    assert_eq!(error, HandshakeError::UnexpectedName { expected: "beta".into(), name: "gamma".into() });
    let ended = run(&setup, usize::MAX);
    let Some(Err(HandshakeError::Refused { code: 4, text })) = ended.acceptor else { panic!("{ended:?}") };
    assert!(!text.contains("beta"), "{text}");
}

#[test]
fn only_the_node_whose_name_sorts_first_dials() {
    let mut setup = setup();
    setup.dialer.name = "zeta".into();
    let error = refused_by_acceptor(&setup);
    assert_eq!(error, HandshakeError::WrongDirection { dialer: "zeta".into(), acceptor: "beta".into() });
}

#[test]
fn an_older_life_of_a_node_is_refused_by_either_side() {
    let setup_acceptor = Setup { incarnation_known: 6, ..setup() };
    let error = refused_by_acceptor(&setup_acceptor);
    assert_eq!(error, HandshakeError::StaleIncarnation { name: "alpha".into(), known: 6, incarnation: 5 });

    let mut setup_dialer = setup();
    setup_dialer.dial.peer_incarnation_known = 10;
    let error = refused_by_dialer(&setup_dialer);
    assert_eq!(error, HandshakeError::StaleIncarnation { name: "beta".into(), known: 10, incarnation: 9 });
}

#[test]
fn a_claim_can_be_turned_away() {
    let setup = setup();
    let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
    let mut dialer = setup.dialer(1, &mut to_acceptor);
    let mut acceptor = setup.acceptor(2);
    let mut claim = None;
    while claim.is_none() {
        if let AcceptorStep::Claimed(claimed) =
            acceptor.received(&std::mem::take(&mut to_acceptor), &mut to_dialer).unwrap()
        {
            claim = Some(claimed);
        } else {
            dialer.received(&std::mem::take(&mut to_dialer), &mut to_acceptor).unwrap();
        }
    }
    acceptor.refuse(HandshakeError::UnknownName { name: "alpha".into() }, &mut to_dialer);
    assert!(acceptor.admit(0, setup.answer, &mut Vec::new()).is_err(), "it stays refused");
    match dialer.received(&to_dialer, &mut to_acceptor) {
        Err(HandshakeError::Refused { code: 12, text }) => assert!(text.contains("--redis"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn garbage_and_a_hello_without_end_are_told_apart() {
    let too_long = |length: u32| [&length.to_be_bytes()[..], &[1], b"TLMX", &[0; 20]].concat();
    for (bytes, error) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], HandshakeError::NotMesh),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", HandshakeError::NotMesh),
        (&[0; 20], HandshakeError::NotMesh),
        (&[0xff; 20], HandshakeError::NotMesh),
        (b"\0\0\0\x32\x01XXXX\0\x01\0\x01 and so on, until the frame has its fifty bytes", HandshakeError::NotMesh),
        (&too_long(307), HandshakeError::HelloTooLong { length: 307 }),
        (&too_long(513), HandshakeError::HelloTooLong { length: 513 }),
        (&too_long(1 << 20), HandshakeError::HelloTooLong { length: 1 << 20 }),
    ] {
        for pieces in [1, 3, usize::MAX] {
            let mut out = Vec::new();
            let mut acceptor = setup().acceptor(2);
            let got = bytes.chunks(pieces).find_map(|piece| acceptor.received(piece, &mut out).err());
            assert_eq!(got.as_ref(), Some(&error), "{bytes:?}");
            assert_eq!(out.is_empty(), error == HandshakeError::NotMesh, "strangers get no answer");
            let mut dialer = setup().dialer(1, &mut Vec::new());
            let got = bytes.chunks(pieces).find_map(|piece| dialer.received(piece, &mut out).err());
            assert_eq!(got.as_ref(), Some(&error), "{bytes:?}");
        }
    }
}

#[test]
fn silence_ends_a_handshake_at_its_deadline() {
    let mut out = Vec::new();
    let dialer = setup().dialer(1, &mut out);
    let silent = |after_ms| Some(HandshakeError::Silent { after_ms });
    assert_eq!(dialer.expired(5_099), None);
    assert_eq!(dialer.expired(5_100), silent(5_000));
    // Who is dialed has less patience with each step, and the same with all of them.
    let mut acceptor = setup().acceptor(2);
    assert_eq!((acceptor.expired(2_099), acceptor.expired(2_100)), (None, silent(2_000)));
    let mut acceptor = setup().acceptor(2);
    assert_eq!(acceptor.expired(2_000), None);
    assert_eq!(acceptor.received(&out, &mut Vec::new()), Ok(AcceptorStep::More));
    assert_eq!(acceptor.progress(), Progress::Hello);
    assert_eq!((acceptor.expired(2_500), acceptor.expired(4_499)), (None, None));
    assert_eq!(acceptor.expired(4_500), silent(2_000), "a Hello alone is no handshake");
    assert_eq!(acceptor.expired(5_100), silent(5_000));
}

#[test]
fn frames_out_of_turn_end_the_handshake() {
    let honest = run(&setup(), usize::MAX).said;
    let [hello, their_hello, proof, their_proof, accept, their_accept] = &honest[..6] else { panic!("{honest:?}") };
    // To the acceptor: anything that is not the next frame.
    for sequence in [
        vec![proof],
        vec![accept],
        vec![hello, hello],
        vec![hello, accept],
        vec![hello, proof, proof],
        vec![hello, proof, hello],
        vec![hello, proof, accept, accept],
    ] {
        let mut acceptor = setup().acceptor(2);
        let mut out = Vec::new();
        let (last, before) = sequence.split_last().unwrap();
        before.iter().for_each(|frame| drop(acceptor.received(frame, &mut out).unwrap()));
        assert_eq!(acceptor.received(last, &mut out), Err(HandshakeError::OutOfTurn));
        assert_eq!(acceptor.received(hello, &mut out), Err(HandshakeError::OutOfTurn), "an end is final");
    }
    for sequence in
        [vec![their_proof], vec![their_accept], vec![their_hello, their_hello], vec![their_hello, their_accept]]
    {
        let mut dialer = setup().dialer(1, &mut Vec::new());
        let mut out = Vec::new();
        let (last, before) = sequence.split_last().unwrap();
        before.iter().for_each(|frame| drop(dialer.received(frame, &mut out).unwrap()));
        assert_eq!(dialer.received(last, &mut out), Err(HandshakeError::OutOfTurn));
        assert_eq!(dialer.received(their_hello, &mut out), Err(HandshakeError::OutOfTurn), "an end is final");
    }
    // A dialer that goes on without waiting for the answer to its claim.
    let mut acceptor = setup().acceptor(2);
    let early = [&hello[..], proof, accept, b"x"].concat();
    assert_eq!(acceptor.received(&early, &mut Vec::new()), Err(HandshakeError::OutOfTurn));
}

#[test]
fn nothing_said_before_can_be_replayed() {
    let honest = run(&setup(), usize::MAX).said;
    // The dialer's side, to an acceptor with another nonce.
    let mut acceptor = setup().acceptor(3);
    let mut out = Vec::new();
    acceptor.received(&honest[0], &mut out).unwrap();
    assert_eq!(acceptor.received(&honest[2], &mut out), Err(HandshakeError::WrongSecret));
    // The acceptor's side, to a dialer with another nonce.
    let mut dialer = setup().dialer(3, &mut Vec::new());
    dialer.received(&honest[1], &mut out).unwrap();
    assert_eq!(dialer.received(&honest[3], &mut out), Err(HandshakeError::WrongSecret));
    // A claim for another link, in a handshake that is honest so far.
    let mut acceptor = setup().acceptor(2);
    acceptor.received(&honest[0], &mut out).unwrap();
    acceptor.received(&honest[2], &mut out).unwrap();
    for at in 5..31 {
        let mut claim = honest[4].clone();
        claim[at] ^= 1;
        let mut acceptor = setup().acceptor(2);
        acceptor.received(&honest[0], &mut out).unwrap();
        acceptor.received(&honest[2], &mut out).unwrap();
        assert_eq!(acceptor.received(&claim, &mut out), Err(HandshakeError::WrongSecret), "byte {at}");
    }
    assert!(acceptor.received(&honest[4], &mut out).is_ok());
}

#[test]
fn a_mac_cannot_be_reflected() {
    // The dialer's own proof comes back, under a Hello with the other name and the dialer's own nonce.
    let mut out = Vec::new();
    let mut dialer = setup().dialer(1, &mut out);
    let mut to_dialer = Vec::new();
    HandshakeFrame::Hello { version_min: 1, version_max: 1, nonce: &[1; 32], name: "beta" }.encode(&mut to_dialer);
    let mut proof = Vec::new();
    dialer.received(&to_dialer, &mut proof).unwrap();
    assert_eq!(dialer.received(&proof, &mut out), Err(HandshakeError::WrongSecret));

    // The dialer's Accept comes back in place of the acceptor's.
    let honest = run(&setup(), usize::MAX).said;
    let mut dialer = setup().dialer(1, &mut Vec::new());
    dialer.received(&honest[1], &mut out).unwrap();
    dialer.received(&honest[3], &mut out).unwrap();
    assert_eq!(dialer.received(&honest[4], &mut out), Err(HandshakeError::WrongSecret));
}

/// A node in the middle that wants in without the secret: it shows the proofs of two honest nodes to each other, which
/// joins those two and nobody else; any byte it changes is noticed.
#[test]
fn a_changed_byte_anywhere_joins_nobody() {
    let honest = run(&setup(), usize::MAX).said;
    for frame in 0..6 {
        for at in 0..honest[frame].len() {
            let mut said = honest.clone();
            said[frame][at] ^= 0x40;
            let mut dialer = setup().dialer(1, &mut Vec::new());
            let mut acceptor = setup().acceptor(2);
            let mut out = Vec::new();
            let mut refused = false;
            if frame % 2 == 0 {
                for bytes in [&said[0], &said[2], &said[4]] {
                    match acceptor.received(bytes, &mut out) {
                        Ok(AcceptorStep::Claimed(_)) => panic!("frame {frame}, byte {at}"),
                        Ok(AcceptorStep::More) => {}
                        Err(_) => refused = true,
                    }
                }
            } else {
                for bytes in [&said[1], &said[3], &said[5]] {
                    match dialer.received(bytes, &mut out) {
                        Ok(DialerStep::Done { .. }) => panic!("frame {frame}, byte {at}"),
                        Ok(DialerStep::More) => {}
                        Err(_) => refused = true,
                    }
                }
            }
            // A length that became larger waits for the rest until the deadline.
            assert!(refused || at < 4, "frame {frame}, byte {at}");
        }
    }
}

/// The macs are part of the protocol between releases.
#[test]
fn the_macs_are_pinned() {
    let honest = run(&setup(), usize::MAX).said;
    assert_eq!(honest[2][5..], unhex(PROOF_OF_DIALER));
    assert_eq!(honest[3][5..], unhex(PROOF_OF_ACCEPTOR));
    assert_eq!(honest[4][31..], unhex(ACCEPT_OF_DIALER));
    assert_eq!(honest[5][31..], unhex(ACCEPT_OF_ACCEPTOR));
}

const PROOF_OF_DIALER: &str = "b49b0bcac7488c243ab20780b739bc0451e9c1930b319841d738cc94412cc408";
const PROOF_OF_ACCEPTOR: &str = "0022e8446266ae45f67d724aa796b816aecf15353ff2201b53ac256c29e3b89e";
const ACCEPT_OF_DIALER: &str = "2680ec152aa7da63263392320fbb471471846b87b360c5cf49dd64bf1d440d9b";
const ACCEPT_OF_ACCEPTOR: &str = "01c0005e836d298385ef74869c91629e2f55f733201c27f9170d84399bbcd85a";

#[test]
fn before_the_other_side_has_proved_itself_a_node_tells_its_name_versions_and_nonce_only() {
    let setup = setup();
    let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
    let mut dialer = setup.dialer(1, &mut to_acceptor);
    let mut acceptor = setup.acceptor(2);
    acceptor.received(&to_acceptor, &mut to_dialer).unwrap();
    to_acceptor.clear();
    dialer.received(&to_dialer, &mut to_acceptor).unwrap();
    assert_eq!(to_acceptor.len(), 5 + MAC_BYTES, "a mac and nothing else");
    let proof = std::mem::take(&mut to_acceptor);
    to_dialer.clear();
    acceptor.received(&proof, &mut to_dialer).unwrap();
    assert_eq!(to_dialer.len(), 5 + MAC_BYTES, "a mac and nothing else");
}

#[test]
fn each_error_has_its_own_number_label_and_a_text_with_the_fix() {
    let name = || "alpha".to_string();
    let versions = Versions { min: 1, max: 2 };
    let errors = [
        (HandshakeError::WrongSecret, "--cluster-secret-file"),
        (HandshakeError::Version { own: versions, theirs: versions }, "upgrade"),
        (HandshakeError::OwnName { name: name() }, "--node"),
        (HandshakeError::UnexpectedName { expected: name(), name: name() }, "--mesh"),
        (HandshakeError::StaleIncarnation { name: name(), known: 2, incarnation: 1 }, "--node"),
        (HandshakeError::NotMesh, "--mesh"),
        (HandshakeError::HelloTooLong { length: 600 }, "check"),
        (HandshakeError::Malformed(MeshViolation::Magic), "upgrade"),
        (HandshakeError::OutOfTurn, "upgrade"),
        (HandshakeError::Silent { after_ms: 5_000 }, "firewall"),
        (HandshakeError::WrongDirection { dialer: name(), acceptor: name() }, "upgrade"),
        (HandshakeError::UnknownName { name: name() }, "--redis"),
        (HandshakeError::UnknownLink { link: 3, links: 2 }, "--shards"),
    ];
    let mut labels = std::collections::HashSet::new();
    for (at, (error, fix)) in errors.iter().enumerate() {
        assert!(error.to_string().contains(fix), "{error}");
        assert_eq!(usize::from(error.code()), at + 1);
        assert!(labels.insert(error.label()));
        let mut out = Vec::new();
        refusal(error, &mut out);
        assert!(out.is_empty() == (*error == HandshakeError::NotMesh) && out.len() <= 207);
    }
}

#[test]
fn the_text_of_a_refusal_cannot_forge_lines_of_a_log() {
    let mut bytes = Vec::new();
    HandshakeFrame::Refuse { code: 999, text: b"no\n\x1b[2Jnode ok \xff" }.encode(&mut bytes);
    let mut dialer = setup().dialer(1, &mut Vec::new());
    let error = dialer.received(&bytes, &mut Vec::new()).unwrap_err();
    assert_eq!(error, HandshakeError::Refused { code: 999, text: "no\u{fffd}\u{fffd}[2Jnode ok \u{fffd}".into() });
}

proptest! {
    #[test]
    fn random_bytes_at_any_step_never_authenticate(bytes in vec(any::<u8>(), 0..700)) {
        crate::mesh::fuzz::handshake(&bytes);
    }

    #[test]
    fn random_frames_at_any_step_never_authenticate(
        pick: u8,
        frames in vec((1_u8..5, vec(any::<u8>(), 0..80)), 1..4),
    ) {
        let mut bytes = vec![pick];
        for (kind, mut body) in frames {
            match kind {
                2 => body.resize(32, 0),
                3 => body.resize(58, 0),
                _ => {}
            }
            bytes.extend_from_slice(&(5 + body.len() as u32).to_be_bytes());
            bytes.push(kind);
            bytes.extend_from_slice(&body);
        }
        crate::mesh::fuzz::handshake(&bytes);
    }
}

#[test]
fn both_sides_have_the_same_keys_and_no_two_connections_do() {
    let both = Versions::of(MeshEncryption::On);
    let keys = |nonce: u8, secret: &'static [u8]| {
        let identities =
            [("alpha", 5), ("beta", 9)].map(|(name, life)| Identity { versions: both, ..identity(name, life) });
        let [dialer, acceptor] = identities;
        let setup = Setup { dialer, acceptor, dialer_secret: secret, acceptor_secret: secret, ..setup() };
        let (mut to_acceptor, mut to_dialer) = (Vec::new(), Vec::new());
        let mut dialer = setup.dialer(nonce, &mut to_acceptor);
        let mut acceptor = setup.acceptor(nonce + 1);
        for _ in 0..3 {
            acceptor.received(&std::mem::take(&mut to_acceptor), &mut to_dialer).unwrap();
            if acceptor.claim().is_some() {
                acceptor.admit(0, setup.answer, &mut to_dialer).unwrap();
            }
            dialer.received(&std::mem::take(&mut to_dialer), &mut to_acceptor).unwrap();
        }
        let (mut dialed, mut accepted) = (dialer.sealing().unwrap().unwrap(), acceptor.sealing().unwrap().unwrap());
        let mut sealed = Vec::new();
        dialed.seal(b"a record", &mut sealed);
        let opened = accepted.open(&mut sealed.clone(), |opened| {
            assert_eq!(opened, b"a record");
            Ok::<(), Forged>(())
        });
        assert_eq!(opened, Ok(()));
        sealed
    };
    let sealed = keys(1, SECRET);
    assert_ne!(sealed, keys(5, SECRET), "with other key pairs");
    assert_ne!(sealed, keys(1, b"another secret of enough bytes"));
}
