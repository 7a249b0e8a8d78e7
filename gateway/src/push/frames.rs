//! Pushes as frames of the services' port: PUSH_TO in, PUSHED or ERROR out, one for each and in their order. For
//! back-ends that push much: no JSON and no base64.

use super::api::{Leaves, PushApi, batch_too_long, idempotency_key, may_push, media_type};
use super::ledger::Standing;
use super::push_to::{self, encode_report, has_head, push_of};
use super::request::{Push, TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use trunkline_proto::{Code, Decoder, Frame, HEADER_LONG, Header, Kind, Outcome, encode};
use trunkline_router::http::{AuditNote, CallerKey, Parameters, Problem};

/// What such bodies are announced as.
pub(super) const MEDIA_TYPE: &str = "application/vnd.trunkline.frames";

/// How long the caller waits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    timeout_ms: Option<u64>,
}

/// Why a frame has an ERROR for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused {
    code: Code,
    text: String,
}

impl From<push_to::Refused> for Refused {
    fn from(push_to::Refused { code, text }: push_to::Refused) -> Self {
        Refused { code, text }
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        let code = match problem.status() {
            StatusCode::FORBIDDEN => Code::NotAllowed,
            StatusCode::SERVICE_UNAVAILABLE => Code::Overloaded,
            _ => Code::BadRequest,
        };
        Refused { code, text: problem.detail().to_owned() }
    }
}

/// A frame of a request: what its answer is for, and the push that it is.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    to: Answered,
    push: Result<Push, Refused>,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answered {
    id: u64,
    peer: u64,
    /// Whom it was for stood in its body, so that the answer has counts.
    headed: bool,
}

impl Asked {
    fn of(frame: &Frame<'_>, wait: Duration, frame_bytes_max: usize) -> Asked {
        let is_push = frame.known() == Some(Kind::PushTo);
        let to = Answered { id: frame.id, peer: frame.peer, headed: is_push && has_head(frame) };
        let text = || "PUSH_TO is the only frame that is taken here".to_owned();
        let push = match is_push {
            true => push_of(frame, Some(wait), frame_bytes_max).map_err(Refused::from),
            false => Err(Refused { code: Code::UnknownKind, text: text() }),
        };
        Asked { to, push }
    }
}

/// The frames of a body. What cannot be followed to its end is refused as a whole.
fn frames(body: &[u8], frames_max: usize, frame_bytes_max: usize) -> Result<Vec<Frame<'_>>, Problem> {
    let mut decoder = Decoder::new(body, u32::try_from(frame_bytes_max).unwrap_or(u32::MAX));
    let mut frames = Vec::new();
    for frame in decoder.by_ref() {
        let at = frames.len() + 1;
        let frame = frame.map_err(|violation| Problem::bad_request(format!("frame {at}: {violation}")))?;
        if frames.len() == frames_max {
            return Err(batch_too_long("frames"));
        }
        frames.push(frame);
    }
    match decoder.rest().len() {
        0 => Ok(frames),
        left => Err(Problem::bad_request(format!("the last {left} bytes are no whole frame"))),
    }
}

/// Appends the answer to a frame whose push was begun.
fn tell(out: &mut Vec<u8>, to: Answered, standing: &Standing) {
    let Answered { id, peer, headed } = to;
    let outcome = Outcome::ALL.iter().find(|outcome| standing.counts.of(**outcome) > 0);
    match outcome.filter(|_| standing.pending == 0) {
        Some(_) if headed => encode_report(out, id, &standing.counts),
        Some(outcome) => {
            let header = Header { kind: Kind::Pushed, flags: 0, aux: outcome.as_u16(), id, peer, stamp: 0 };
            encode(out, &header, &[]);
        }
        None => {
            let text = "no outcome yet; the push goes on: ask again with the same Idempotency-Key".to_owned();
            refuse(out, to, &Refused { code: Code::OutcomeUnknown, text });
        }
    }
}

fn refuse(out: &mut Vec<u8>, to: Answered, refused: &Refused) {
    let Answered { id, peer, .. } = to;
    let header = Header { kind: Kind::Error, flags: 0, aux: refused.code.as_u16(), id, peer, stamp: 0 };
    encode(out, &header, refused.text.as_bytes());
}

pub(super) async fn push_frames(
    State(api): State<Arc<PushApi>>,
    Extension(caller): Extension<CallerKey>,
    Parameters(query): Parameters<Query>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let work = push_all(&api, &caller, &query, &headers, request);
    Leaves::watch(&api, &caller.id, "POST /v1/push/frames", work).await
}

async fn push_all(
    api: &PushApi,
    caller: &CallerKey,
    query: &Query,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    if media_type(headers) != MEDIA_TYPE {
        let detail = format!("the body has to be frames: send it with Content-Type: {MEDIA_TYPE}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let timeout_ms = query.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT);
    if timeout_ms > TIMEOUT_MS_MAX {
        return Err(Problem::bad_request(format!("timeout_ms has to be 0 to {TIMEOUT_MS_MAX}")));
    }
    let key = idempotency_key(headers)?;
    let _place = api.place_of_batch()?;
    let (body, room) = api.body(request).await?;
    let wait = Duration::from_millis(timeout_ms);
    let asked = frames(&body, super::api::LINES_MAX, api.frame_bytes_max())?;
    let asked: Vec<Asked> = asked.iter().map(|frame| Asked::of(frame, wait, api.frame_bytes_max())).collect();
    drop((body, room));
    let (mut names, mut pushes) = (Vec::with_capacity(asked.len()), Vec::with_capacity(asked.len()));
    for Asked { to, push } in asked {
        names.push(to);
        pushes.push(push.and_then(|push| may_push(caller, &push).map(|()| push).map_err(Refused::from)));
    }
    let (begun, recipients) = api.begin_batch(pushes, caller, key.as_deref())?;
    let (mut out, mut good, all) = (Vec::with_capacity(all_bytes(names.len())), 0, names.len());
    for (to, begun) in names.into_iter().zip(begun) {
        match begun {
            Ok(begun) => {
                good += 1;
                tell(&mut out, to, &api.outcome(begun).await);
            }
            Err(refused) => refuse(&mut out, to, &refused),
        }
    }
    let note = AuditNote(format!("{all} frames, {} refused, {recipients} recipients", all - good));
    Ok((Extension(note), [(header::CONTENT_TYPE, MEDIA_TYPE)], out).into_response())
}

/// What as many PUSHED take.
const fn all_bytes(frames: usize) -> usize {
    frames * HEADER_LONG
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trunkline_proto::prost::Message;
    use trunkline_proto::{PushHead, SERVICE_USERS, call_flags, flags};

    const WAIT: Duration = Duration::from_secs(5);
    const ALL: u8 = flags::ACK | flags::NO_STORE;
    const TO: Answered = Answered { id: 9, peer: 42, headed: false };

    fn push_to(flags: u8, service: u16, id: u64, peer: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, &Header { kind: Kind::PushTo, flags, aux: service, id, peer, stamp: 0 }, payload);
        out
    }

    fn with_head(id: u64, head: &PushHead) -> Vec<u8> {
        let head = head.encode_to_vec();
        push_to(ALL | call_flags::HEAD, 7, id, 0, &[&(head.len() as u16).to_be_bytes()[..], &head].concat())
    }

    fn asked(body: &[u8]) -> Vec<Asked> {
        let frames = frames(body, 1_000, 1_024).unwrap();
        frames.iter().map(|frame| Asked::of(frame, WAIT, 1_024)).collect()
    }

    fn answers(out: &[u8]) -> Vec<(Option<Kind>, u16, u64, u64)> {
        let frames = Decoder::new(out, 65_536).map(Result::unwrap);
        frames.map(|frame| (frame.known(), frame.aux, frame.id, frame.peer)).collect()
    }

    #[test]
    fn a_frame_is_the_push_that_its_json_would_be() {
        let json = r#"{"to":{"user":42},"service":7,"id":9,"payload":"aGk=","ack":ACK,"store":STORE}"#;
        for (flags, ack, store) in [
            (0, "false", "true"),
            (flags::ACK, "true", "true"),
            (flags::NO_STORE, "false", "false"),
            (ALL, "true", "false"),
        ] {
            let json = json.replace("ACK", ack).replace("STORE", store);
            let expected = Push::parse(json.as_bytes(), 1_024).unwrap();
            let frames = asked(&push_to(flags, 7, 9, 42, b"hi"));
            assert_eq!(frames, [Asked { to: TO, push: Ok(expected) }]);
        }
    }

    #[test]
    fn what_is_no_push_is_refused_by_itself_and_the_rest_goes_on() {
        let mut other = Vec::new();
        encode(&mut other, &Header { kind: Kind::Ping, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 }, &[]);
        let body = [
            push_to(ALL, 7, 1, 42, b""),
            other,
            push_to(ALL, 0, 2, 42, b""),
            push_to(ALL, 7, 0, 42, b""),
            push_to(ALL, 7, 3, 0, b""),
            push_to(ALL, 7, 4, SERVICE_USERS, b""),
            with_head(5, &PushHead { all: true, ..PushHead::default() }),
            with_head(6, &PushHead { users: vec![1, 2], ..PushHead::default() }),
            push_to(ALL, u16::MAX, u64::MAX, SERVICE_USERS - 1, b""),
        ];
        let codes: Vec<(u64, Option<Code>)> = asked(&body.concat())
            .iter()
            .map(|asked| (asked.to.id, asked.push.as_ref().err().map(|refused| refused.code)))
            .collect();
        let bad = Some(Code::BadRequest);
        let (unknown, unsupported) = (Some(Code::UnknownKind), Some(Code::Unsupported));
        assert_eq!(
            codes,
            [
                (1, None),
                (0, unknown),
                (2, bad),
                (0, bad),
                (3, bad),
                (4, bad),
                (5, unsupported),
                (6, None),
                (u64::MAX, None)
            ]
        );
    }

    #[test]
    fn what_cannot_be_followed_to_its_end_is_refused_as_a_whole() {
        let good = push_to(ALL, 7, 1, 42, b"hi");
        let long = push_to(ALL, 7, 1, 42, &[0; 1_024]);
        let short = [0, 0, 0, 7, 0x22, 0, 0, 7];
        for (body, status, hint) in [
            ([&good[..], &good[..20]].concat(), 400, "the last 20 bytes"),
            ([&good[..], &short[..]].concat(), 400, "frame 2: a frame of 7 bytes"),
            ([&good[..], &long[..]].concat(), 400, "the longest accepted has 1024"),
            (good.repeat(4), 413, "1000 frames at most"),
        ] {
            let problem = frames(&body, 3, 1_024).expect_err(hint);
            assert_eq!(problem.status().as_u16(), status, "{problem:?}");
            assert!(problem.detail().contains(hint), "{problem:?}");
        }
        assert_eq!(frames(&good.repeat(3), 3, 1_024).unwrap().len(), 3);
        assert!(frames(&[], 3, 1_024).unwrap().is_empty());
    }

    #[test]
    fn each_frame_has_one_answer_with_its_outcome() {
        let mut out = Vec::new();
        for outcome in Outcome::ALL {
            let mut standing = Standing::default();
            standing.counts.add(*outcome);
            tell(&mut out, TO, &standing);
        }
        let mut half = Standing { pending: 1, ..Standing::default() };
        half.counts.add(Outcome::Stored);
        tell(&mut out, TO, &half);
        let headed = Answered { peer: 0, headed: true, ..TO };
        tell(&mut out, headed, &half);
        tell(&mut out, headed, &Standing { pending: 0, ..half });
        for (problem, code) in [
            (Problem::unavailable(""), Code::Overloaded),
            (Problem::new(StatusCode::FORBIDDEN, ""), Code::NotAllowed),
            (Problem::bad_request(""), Code::BadRequest),
            (Problem::new(StatusCode::CONFLICT, ""), Code::BadRequest),
        ] {
            let refused = Refused::from(problem);
            assert_eq!(refused.code, code);
        }
        let mut expected: Vec<(Option<Kind>, u16, u64, u64)> =
            Outcome::ALL.iter().map(|outcome| (Some(Kind::Pushed), outcome.as_u16(), 9, 42)).collect();
        let unknown = Code::OutcomeUnknown.as_u16();
        expected.push((Some(Kind::Error), unknown, 9, 42));
        expected.push((Some(Kind::Error), unknown, 9, 0));
        expected.push((Some(Kind::Pushed), 0, 9, 0));
        assert_eq!(answers(&out), expected);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frames) = frames(&bytes, 1_000, 1_024) {
                for frame in frames {
                    let _ = Asked::of(&frame, WAIT, 1_024);
                }
            }
        }
    }
}
