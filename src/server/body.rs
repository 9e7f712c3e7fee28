//! Bodies of requests, with limits on their size, on the time they take, and on the memory of all of them together.

use super::AppState;
use super::error::ApiError;
use axum::http::header;
use http_body_util::BodyExt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedSemaphorePermit;

/// Bodies of the largest size that fit into memory at the same time.
const LARGEST: usize = 64;

/// A body's bytes, which count against what all bodies may hold until they are dropped.
pub struct BodyBytes {
    bytes: Vec<u8>,
    app: Arc<AppState>,
}

impl Deref for BodyBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        self.app.body_bytes.fetch_sub(self.bytes.len(), Ordering::AcqRel);
    }
}

impl BodyBytes {
    fn extend(&mut self, more: &[u8]) -> Result<(), ApiError> {
        let limit = self.app.config.limits.body;
        if self.bytes.len() + more.len() > limit {
            return Err(ApiError::too_large(limit));
        }
        let all = limit.saturating_mul(LARGEST);
        let fits = |held: usize| held.checked_add(more.len()).filter(|&held| held <= all);
        if self.app.body_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_err() {
            return Err(ApiError { retry_after: Some(1), ..ApiError::unavailable("too many large requests at once") });
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }
}

/// Reads a body to its end.
///
/// # Errors
/// It is too large or too slow, or breaks off.
pub async fn read(app: &Arc<AppState>, request: axum::extract::Request) -> Result<BodyBytes, ApiError> {
    let limits = &app.config.limits;
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok()).unwrap_or(0);
    if announced > limits.body as u64 {
        return Err(ApiError::too_large(limits.body));
    }
    let mut body = request.into_body();
    let mut bytes = BodyBytes { bytes: Vec::new(), app: app.clone() };
    let whole = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
            if let Some(data) = frame.data_ref() {
                bytes.extend(data)?;
            }
        }
        Ok(bytes)
    };
    let read = tokio::time::timeout(limits.arrival, whole).await;
    read.unwrap_or_else(|_| Err(ApiError::too_slow(limits.arrival)))
}

/// Bodies from this size on wait until there is room to encode their texts, which takes some 170 bytes of memory for each byte.
const LARGE: usize = 1 << 16;
/// Bytes of large bodies whose texts are encoded at the same time, in units of half a MiB.
pub const ENCODED: usize = 8;
const UNIT: usize = 1 << 19;

/// Waits for its turn to encode the texts of a body; small ones need not.
pub async fn encoding(app: &AppState, bytes: &[u8]) -> Option<OwnedSemaphorePermit> {
    if bytes.len() < LARGE {
        return None;
    }
    // A body larger than all of the room gets it alone.
    let units = u32::try_from(bytes.len().div_ceil(UNIT).min(ENCODED)).unwrap_or(1);
    app.encoders.clone().acquire_many_owned(units).await.ok()
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
