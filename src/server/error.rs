//! Errors as OpenAI's clients expect them: a status, and `{"error": {"message", "type", "param", "code"}}`.

use crate::Error;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// What is wrong with a request, or with us.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What happened, in a sentence.
    pub message: String,
    /// The field that it is about.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>, code: Option<&'static str>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// The request cannot be used as it is.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message, None)
    }

    /// A field of it cannot.
    pub fn field(param: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError { param: Some(param.to_string()), ..ApiError::invalid(format!("`{param}` {message}")) }
    }

    /// The body is larger than allowed.
    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("the body is larger than {limit} bytes, the limit of this server");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message, Some("body_too_large"))
    }

    /// The body did not come in time.
    pub fn too_slow(seconds: u64) -> ApiError {
        let message = format!("the request did not arrive within {seconds} s");
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message, Some("request_timeout"))
    }

    /// No key, or a wrong one.
    pub fn unauthorized() -> ApiError {
        let message = "an API key is needed: Authorization: Bearer KEY";
        ApiError::new(StatusCode::UNAUTHORIZED, message, Some("invalid_api_key"))
    }

    /// No such route.
    pub fn no_route(path: &str) -> ApiError {
        let path: String = path.chars().take(200).collect();
        ApiError::new(StatusCode::NOT_FOUND, format!("there is no route {path}"), Some("not_found"))
    }

    /// The route has another method.
    pub fn no_method(method: &str) -> ApiError {
        let message = format!("the route does not take {method}");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message, Some("method_not_allowed"))
    }

    /// No such model.
    pub fn no_model(name: &str) -> ApiError {
        let name: String = name.chars().take(200).collect();
        let message = format!("the model {name:?} does not exist; GET /v1/models lists what there is");
        let error = ApiError::new(StatusCode::NOT_FOUND, message, Some("model_not_found"));
        ApiError { param: Some("model".to_string()), ..error }
    }

    /// Too many requests wait already.
    pub fn busy(limit: usize) -> ApiError {
        let message = format!("{limit} requests run or wait, as many as this server takes; try again later");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message, Some("queue_full"));
        ApiError { retry_after: Some(1), ..error }
    }

    /// Not ready, or not any more.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message, Some("unavailable"));
        ApiError { retry_after: Some(5), ..error }
    }

    /// The answer took too long.
    pub fn timeout(seconds: u64) -> ApiError {
        let message = format!("the answer was not complete within {seconds} s, the limit of this server");
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, message, Some("timeout"))
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message, None)
    }

    /// The same about a field, if none was named yet.
    #[must_use]
    pub fn about(self, param: &str) -> ApiError {
        ApiError { param: self.param.or_else(|| Some(param.to_string())), ..self }
    }

    /// OpenAI's words for the kind of error.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({
            "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code }
        })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        match error {
            Error::Invalid(message) => ApiError::invalid(message),
            // The checkpoint's numbers, or the machine's files: no path belongs in an answer.
            Error::NonFinite { .. } => ApiError { code: Some("non_finite"), ..ApiError::internal(error.to_string()) },
            Error::Io { .. } | Error::File { .. } => ApiError::internal("a file of the model cannot be used"),
            Error::Backend(message) => ApiError::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}
