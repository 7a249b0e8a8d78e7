//! Who of several users is online, in one request.

use super::Source;
use super::body::Body;
use super::places::Places;
use super::problem::Problem;
use super::reads::picture_of;
use crate::api::{self, PRESENCE_USERS_MAX, PresenceRequest, Presences};
use axum::extract::State;
use axum::{Extension, Json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Such questions at a time, in the whole process. Each is a command to Redis for each user, beside those that keep
/// the leases, and holds the entries of all of them until it is answered.
static QUESTIONS: Semaphore = Semaphore::const_new(QUESTIONS_MAX);
pub(super) const QUESTIONS_MAX: usize = 4;

/// How long one waits for those before.
const WAIT: Duration = Duration::from_secs(3);

/// A user of whom nothing can be found out is unknown, and the others are answered all the same.
pub(super) async fn presence<S: Source>(
    State(source): State<Arc<S>>,
    places: Option<Extension<Arc<Places>>>,
    Body(PresenceRequest { users }): Body<PresenceRequest>,
) -> Result<Json<Presences>, Problem> {
    if users.is_empty() || users.len() > PRESENCE_USERS_MAX {
        let detail = format!("users names {}; 1 to {PRESENCE_USERS_MAX} are allowed in one request", users.len());
        return Err(Problem::bad_request(detail));
    }
    // Never closed, so the inner result is always a permit.
    let Ok(Ok(_permit)) = timeout(WAIT, QUESTIONS.acquire()).await else {
        if let Some(Extension(places)) = places {
            places.count_refused();
        }
        let detail = format!("{QUESTIONS_MAX} questions for presence are being answered; try again in a moment");
        return Err(Problem::unavailable(detail));
    };
    // Where no node is known at all, Redis need not be asked.
    drop(picture_of(&*source)?);
    let users: Vec<u64> = users.into_iter().map(|user| user.0).collect();
    let entries = source.entries_of(&users).await;
    // The view is looked at last, so that nobody is online at a node that is known to be dead by then.
    let picture = picture_of(&*source)?;
    Ok(Json(api::presences(&picture, users.into_iter().zip(entries).collect())))
}
