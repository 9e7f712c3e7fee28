//! Bodies of requests, with a limit on their size and on the time they take.

use super::Served;
use super::error::ApiError;
use axum::body::Body;
use axum::http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::sync::Arc;

/// Reads a body to its end.
///
/// # Errors
/// It is too large or too slow, or breaks off.
pub async fn read(served: &Arc<Served>, request: axum::extract::Request) -> Result<Vec<u8>, ApiError> {
    let limits = &served.config.limits;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok()).unwrap_or(0);
    if announced > limits.body as u64 {
        return Err(ApiError::too_large(limits.body));
    }
    let body: Limited<Body> = Limited::new(request.into_body(), limits.body);
    match tokio::time::timeout(limits.arrival, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limits.body)),
        Ok(Err(_)) => Err(ApiError::invalid("the body broke off")),
        Err(_) => Err(ApiError::too_slow(limits.arrival.as_secs())),
    }
}

/// Does work that takes its time without keeping other requests waiting.
///
/// # Errors
/// The work's own, or it panicked.
pub async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}
