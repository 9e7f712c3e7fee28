//! What every request passes through: a request id, a log line, the key check, CORS, and a handler of panics.

use super::AppState;
use super::error::ApiError;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use std::any::Any;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Routes that need no key, for supervisors.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// Who sent a request: the number of the key, 0 without keys.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Caller(pub u32);

/// Who sent a request.
pub(super) fn caller(request: &Request) -> Caller {
    request.extensions().get::<Caller>().copied().unwrap_or_default()
}

/// A request's id, which all its log lines name.
#[derive(Clone)]
struct RequestId(String);

/// Puts layers around routes; the last one sees a request first.
pub(super) fn around(routes: Router<Arc<AppState>>, app: &Arc<AppState>) -> Router<Arc<AppState>> {
    let origins = &app.config.origins;
    let routes = routes.layer(from_fn_with_state(app.clone(), guard)).layer(CatchPanicLayer::custom(panicked));
    let routes = match origins.is_empty() {
        true => routes,
        // Credentials are never allowed: a page can only use a key that its visitor gives it.
        false => routes.layer(
            CorsLayer::new()
                .allow_origin(match origins.iter().any(|origin| origin == "*") {
                    true => AllowOrigin::any(),
                    false => AllowOrigin::list(origins.clone()),
                })
                .allow_methods(AllowMethods::list([Method::GET, Method::POST]))
                // OpenAI's client sends eight of its own, and every release may add some.
                .allow_headers(AllowHeaders::mirror_request())
                .expose_headers([REQUEST_ID, header::RETRY_AFTER]),
        ),
    };
    routes.layer(from_fn_with_state(app.clone(), observe))
}

/// Checks the key and where the request comes from.
async fn guard(State(app): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    if let Some(expected) = request.headers().get(header::EXPECT)
        && !expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        return ApiError::expectation().into_response();
    }
    if app.config.local
        && let Err(error) = from_here(&app, &request)
    {
        return error.into_response();
    }
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match app.config.keys.admits(request.headers()) {
        Some(key) => {
            request.extensions_mut().insert(Caller(key));
            next.run(request).await
        }
        None => ApiError::unauthorized().into_response(),
    }
}

/// Checks that a request to a server which trusts its machine comes from it: any page that a browser of the machine shows can
/// send it requests, by the server's address or, with a name server of its own, by a name that leads to the machine.
fn from_here(app: &AppState, request: &Request) -> Result<(), ApiError> {
    let named = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let host = named.or(request.uri().host());
    match host {
        Some(host) if app.admits_host(host) => {}
        Some(host) => {
            let host: String = host.chars().take(200).collect();
            let message =
                format!("the host {host:?} is not this machine's; --allowed-host NAME opens the server to it");
            return Err(ApiError::forbidden(message));
        }
        None if request.version() == Version::HTTP_11 => return Err(ApiError::invalid("the `Host` header is missing")),
        None => {}
    }
    let Some(origin) = request.headers().get(header::ORIGIN) else { return Ok(()) };
    let allowed = |named: &HeaderValue| named == "*" || named == origin;
    let page = origin.to_str().unwrap_or_default();
    let here = page.split_once("://").is_some_and(|(_, host)| app.admits_host(host));
    match here || app.config.origins.iter().any(allowed) {
        true => Ok(()),
        false => {
            let page: String = page.chars().take(200).collect();
            let message = format!("pages of {page:?} may not use this server; --cors-origin ORIGIN allows them to");
            Err(ApiError::forbidden(message))
        }
    }
}

/// Gives a request its id, counts it, and logs it.
async fn observe(State(app): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = given_id(request.headers()).unwrap_or_else(new_id);
    request.extensions_mut().insert(RequestId(id.clone()));
    let trace = trace_id(request.headers()).map(str::to_string);
    let route = request.extensions().get::<MatchedPath>().map_or("other".to_string(), |path| path.as_str().to_string());
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let (status, seconds) = (response.status(), started.elapsed().as_secs_f64());
    app.metrics.http(&route, status);
    // The log names the field of a refused request and never its value. Messages of server errors quote no prompt.
    let error = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = error.as_ref().filter(|_| method == Method::POST && route != "other") {
        app.metrics.failed(error);
    }
    let error = error.map(|error| match error.status.is_server_error() {
        true => error.logged(),
        false => error.param.or(error.code.map(str::to_string)).unwrap_or_else(|| "body".to_string()),
    });
    let (method, status, trace) = (method.as_str(), status.as_u16(), trace.as_deref());
    // Probes and scrapes come every few seconds: they are logged at debug level.
    match OPEN.contains(&route.as_str()) || route == "/metrics" {
        true => tracing::debug!(event = "request", request_id = id, trace_id = trace, method, route, status, seconds),
        false => {
            tracing::info!(event = "request", request_id = id, trace_id = trace, method, route, status, seconds, error);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// A request's id.
pub(super) fn request_id(request: &Request) -> String {
    request.extensions().get::<RequestId>().map_or_else(new_id, |id| id.0.clone())
}

/// The id that the client sent, if it is short and printable.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| id.to_string())
}

fn new_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let half = || {
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u64(next);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(), half())
}

/// The trace that a request belongs to: of a W3C `traceparent`, version 00 or later.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-');
    let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let sound = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16);
    (sound && trace.bytes().any(|byte| byte != b'0')).then_some(trace)
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal("the request could not be answered because of an error in the server").into_response()
}

pub(super) async fn no_route(request: Request) -> ApiError {
    ApiError::no_route(request.uri().path())
}

pub(super) async fn no_method(request: Request) -> ApiError {
    ApiError::no_method(request.method().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &'static str, value: &str) -> HeaderMap {
        [(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())].into_iter().collect()
    }

    #[test]
    fn numbers_that_can_be_repeated() {
        assert_eq!(given_id(&header("x-request-id", "abc-1")).as_deref(), Some("abc-1"));
        for odd in ["", "a b", &"x".repeat(129)] {
            assert_eq!(given_id(&header("x-request-id", odd)), None);
        }
        assert_ne!(new_id(), new_id());
    }

    #[test]
    fn traces() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let sound = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&header("traceparent", &sound)), Some(trace));
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for odd in ["", "00", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", zero, "00-XYZ-0-01"] {
            assert_eq!(trace_id(&header("traceparent", odd)), None, "{odd}");
        }
    }
}
