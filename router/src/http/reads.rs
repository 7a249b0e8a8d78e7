//! The questions. They change nothing, and a gateway answers them as well as a router.

use super::Source;
use super::access::Needs;
use super::body::{Body, Parameters, UserInPath};
use super::keys::Scope;
use super::presence::presence;
use super::problem::Problem;
use super::routes::Routes;
use crate::api::{self, Explanation, Nodes, Online, Picture, Preview, PreviewRequest, User};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Previews at a time, in the whole process. Each may take a second of one core and 150 MB at the limits of weight and
/// sample.
static PREVIEWS: Semaphore = Semaphore::const_new(1);

/// How long a preview waits for the one before.
const PREVIEW_WAIT: Duration = Duration::from_secs(3);

impl<S: Source> Routes<S> {
    /// Adds the questions: `GET /v1/cluster`, `/v1/nodes`, `/v1/online`, `/v1/users/{user}` and `/v1/explain/{user}`,
    /// and `POST /v1/presence` and `/v1/ring/preview`.
    #[must_use]
    pub fn reads(self) -> Self {
        self.get("/v1/nodes", Needs::Read(Scope::NodesRead), nodes::<S>)
            .get("/v1/cluster", Needs::Read(Scope::NodesRead), cluster::<S>)
            .get("/v1/online", Needs::Read(Scope::NodesRead), online::<S>)
            .get("/v1/users/{user}", Needs::Read(Scope::UsersRead), user::<S>)
            .get("/v1/explain/{user}", Needs::Read(Scope::UsersRead), explain::<S>)
            .post("/v1/presence", Needs::Read(Scope::UsersRead), presence::<S>)
            .post("/v1/ring/preview", Needs::Read(Scope::NodesRead), preview::<S>)
    }
}

pub(super) fn picture_of(source: &impl Source) -> Result<Picture, Problem> {
    source.picture().map_err(Problem::unavailable)
}

async fn nodes<S: Source>(State(source): State<Arc<S>>) -> Result<Json<Nodes>, Problem> {
    let picture = picture_of(&*source)?;
    Ok(Json(api::nodes(&picture, |node| source.reachable(node))))
}

/// JSON, unless the client would rather have text: for people at a terminal.
async fn cluster<S: Source>(State(source): State<Arc<S>>, headers: HeaderMap) -> Result<Response, Problem> {
    let picture = picture_of(&*source)?;
    let overview = api::overview(&picture, |node| source.reachable(node), source.links());
    Ok(match prefers_text(&headers) {
        true => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], overview.page()).into_response(),
        false => Json(overview).into_response(),
    })
}

/// Whether `Accept` (RFC 9110, section 12.5.1) wants text/plain more than application/json. Without it, or where both
/// are as good, no.
fn prefers_text(headers: &HeaderMap) -> bool {
    let quality = |wanted: &str| {
        let ranges = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let kind = wanted.split('/').next().unwrap_or_default();
        let fits = ranges.filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let range = parts.next()?;
            let names = ["*/*".to_owned(), format!("{kind}/*"), wanted.to_owned()];
            let how_near = names.iter().position(|name| range.eq_ignore_ascii_case(name))?;
            let weight =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0_f32), |text| text.parse().ok())?;
            Some((how_near, weight))
        });
        // The range that names it most closely decides.
        fits.max_by_key(|(how_near, _)| *how_near).map_or(0.0, |(_, weight)| weight)
    };
    quality("text/plain") > quality("application/json")
}

async fn online<S: Source>(State(source): State<Arc<S>>) -> Result<Json<Online>, Problem> {
    Ok(Json(api::online(&picture_of(&*source)?)))
}

async fn user<S: Source>(State(source): State<Arc<S>>, UserInPath(user): UserInPath) -> Result<Json<User>, Problem> {
    let entries = source.entries(user).await.map_err(Problem::unavailable)?;
    // The view is looked at last, so that no session is shown of a node that is known to be dead by then.
    let picture = picture_of(&*source)?;
    Ok(Json(api::user(&picture, user, entries)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    from: Option<String>,
}

async fn explain<S: Source>(
    State(source): State<Arc<S>>,
    UserInPath(user): UserInPath,
    Parameters(ExplainQuery { from }): Parameters<ExplainQuery>,
) -> Result<Json<Explanation>, Problem> {
    // Most of the explanation does not need the presence store, and is wanted most when something does not work.
    let entries = source.entries(user).await.ok();
    let picture = picture_of(&*source)?;
    api::explain(&picture, user, entries, from.as_deref()).map(Json).map_err(Problem::not_found)
}

async fn preview<S: Source>(
    State(source): State<Arc<S>>,
    Body(request): Body<PreviewRequest>,
) -> Result<Json<Preview>, Problem> {
    let busy = || Problem::unavailable("another preview is being computed; try again in a moment");
    // Never closed, so the inner result is always a permit.
    let permit = timeout(PREVIEW_WAIT, PREVIEWS.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
    let Picture { view, degraded, .. } = picture_of(&*source)?;
    let weight_max = source.preview_weight_max();
    let computed = spawn_blocking(move || {
        // Given back when the work ends, even if nobody waits for the answer any more.
        let _permit = permit;
        api::preview(&view, degraded, &request, weight_max)
    });
    match computed.await {
        Ok(Ok(preview)) => Ok(Json(preview)),
        Ok(Err(error)) if error.is_conflict() => Err(Problem::new(StatusCode::CONFLICT, error.to_string())),
        Ok(Err(error)) => Err(Problem::bad_request(error.to_string())),
        Err(error) => Err(Problem::unavailable(format!("the preview ended early: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_for_those_who_ask_for_it() {
        for (accept, text) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["text/plain"], true),
            (&["Text/Plain; charset=utf-8"], true),
            (&["text/*, application/json;q=0.5"], true),
            (&["application/json", "text/plain"], false),
            (&["application/json;q=0.2, text/plain;q=0.3"], true),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], false),
            (&["text/plain;q=0, */*"], false),
            (&["text/plain;q=much"], false),
            (&["\u{ff}"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            assert_eq!(prefers_text(&headers), text, "{accept:?}");
        }
    }
}
