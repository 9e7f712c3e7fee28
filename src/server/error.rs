//! Errors as OpenAI's clients expect them: a status, and `{"error": {"message", "type", "param", "code"}}`.

use crate::Error;
use crate::error::Limit;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// `code` of requests that need a model that the server does not have.
const MISSING_MODEL: &str = "missing_model";
const NO_POLICY: &str = "this server has no language model";
const NO_REWARD_MODEL: &str = "this server has no reward model";

/// An error response.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The message.
    pub message: String,
    /// The field of the request that the error is about.
    pub param: Option<String>,
    /// OpenAI's `code`, for programs.
    pub code: Option<&'static str>,
    /// The `Retry-After` header, in seconds.
    pub retry_after: Option<u64>,
    /// What went wrong, for the log alone: it may name paths of the machine.
    pub reason: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>, code: Option<&'static str>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code, retry_after: None, reason: None }
    }

    /// 400: the request is invalid.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message, None)
    }

    /// 400: a field of the request is invalid.
    pub fn field(param: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError { param: Some(param.to_string()), ..ApiError::invalid(format!("`{param}` {message}")) }
    }

    /// 400: the prompt, or the prompt and its answer, is too long. LiteLLM knows this error by the first half of the sentence,
    /// LangChain by the second.
    pub fn too_long(context: usize, message: &str) -> ApiError {
        let message =
            format!("This model's maximum context length is {context} tokens; the prompt is too long: {message}");
        ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(message) }
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn too_large(limit: usize) -> ApiError {
        let message = format!("the body is larger than {limit} bytes, the limit of this server");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message, Some("body_too_large"))
    }

    /// 408: the body did not arrive in time.
    pub fn too_slow(limit: Duration) -> ApiError {
        let message = format!("the request did not arrive within {} s", limit.as_secs_f64());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message, Some("request_timeout"))
    }

    /// 401: no key, or a wrong one.
    pub fn unauthorized() -> ApiError {
        let message = "an API key is needed: Authorization: Bearer KEY";
        ApiError::new(StatusCode::UNAUTHORIZED, message, Some("invalid_api_key"))
    }

    /// 404: there is no such route.
    pub fn no_route(path: &str) -> ApiError {
        let path: String = path.chars().take(200).collect();
        ApiError::new(StatusCode::NOT_FOUND, format!("there is no route {path}"), Some("not_found"))
    }

    /// 405: the route has another method.
    pub fn no_method(method: &str) -> ApiError {
        let message = format!("the route does not take {method}");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message, Some("method_not_allowed"))
    }

    /// 404: there is no such model.
    pub fn no_model(name: &str) -> ApiError {
        ApiError::unknown_model(name, "; GET /v1/models lists what there is")
    }

    /// 404: the model is one that only a server with a reward model has.
    pub fn model_without_reward(name: &str) -> ApiError {
        ApiError::unknown_model(name, &format!(": {NO_REWARD_MODEL}"))
    }

    fn unknown_model(name: &str, more: &str) -> ApiError {
        let name: String = name.chars().take(200).collect();
        let message = format!("the model {name:?} does not exist{more}");
        let error = ApiError::new(StatusCode::NOT_FOUND, message, Some("model_not_found"));
        ApiError { param: Some("model".to_string()), ..error }
    }

    /// 400: a field asks for the method, which needs a reward model.
    pub fn field_without_reward(param: &str) -> ApiError {
        let error = ApiError::field(param, format!("cannot be honoured: {NO_REWARD_MODEL}"));
        ApiError { code: Some(MISSING_MODEL), ..error }
    }

    /// 429: as many requests run and wait as the server takes.
    pub fn busy(limit: usize) -> ApiError {
        let message = format!("{limit} requests run or wait, as many as this server takes; try again later");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message, Some("queue_full"));
        ApiError { retry_after: Some(1), ..error }
    }

    /// 429: the answers in flight may take as much memory as the server gives them.
    pub fn no_room() -> ApiError {
        let message = "the answers in flight leave no room for one of this length; try again later";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message, Some("queue_full"));
        ApiError { retry_after: Some(1), ..error }
    }

    /// 403: the request comes by a name, or from a page, that this server is not open to.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message, Some("forbidden"))
    }

    /// 417: the request expects something that the server does not do.
    pub fn expectation() -> ApiError {
        let message = "the `Expect` header must be 100-continue";
        ApiError::new(StatusCode::EXPECTATION_FAILED, message, Some("expectation_failed"))
    }

    /// 503: the server is not ready, or is about to stop.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message, Some("unavailable"));
        ApiError { retry_after: Some(5), ..error }
    }

    /// 504: the answer took too long.
    pub fn timeout(limit: Duration) -> ApiError {
        let message = format!("the answer was not complete within {} s, the limit of this server", limit.as_secs_f64());
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, message, Some("timeout"))
    }

    /// 500: a fault of the server.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message, None)
    }

    /// The same error, about this field unless it names one already.
    #[must_use]
    pub fn about(self, param: &str) -> ApiError {
        ApiError { param: self.param.or_else(|| Some(param.to_string())), ..self }
    }

    /// The message for the log, with the reason.
    pub fn logged(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{}: {reason}", self.message),
            None => self.message.clone(),
        }
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "service_unavailable_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The response's body.
    pub fn body(&self) -> Value {
        json!({
            "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code }
        })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        match error {
            // The client cannot mend these, and paths of the machine are not for it to see.
            Error::NonFinite { .. } => ApiError { code: Some("non_finite"), ..ApiError::internal(error.to_string()) },
            Error::MissingModel { model, .. } => {
                let message = if model == "policy" { NO_POLICY } else { NO_REWARD_MODEL };
                ApiError { code: Some(MISSING_MODEL), ..ApiError::invalid(message) }
            }
            Error::Io { .. } | Error::File { .. } => {
                ApiError { reason: Some(error.to_string()), ..ApiError::internal("a file of the model cannot be used") }
            }
            Error::TooLong { limit_of: Limit::Context, limit, message, .. } => ApiError::too_long(limit, &message),
            error if error.is_invalid_input() => ApiError::invalid(error.to_string()),
            error => ApiError::internal(error.to_string()),
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
