//! How results become responses.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use drover_control::Tagged;
use drover_types::{ApiError, ErrorCode};
use serde::Serialize;

/// What a handler that failed returns.
pub struct Failure(pub ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self.0)).into_response();
        if self.0.code == ErrorCode::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub type Answer<T> = Result<T, Failure>;

/// A resource with its ETag.
pub struct Versioned<T>(pub StatusCode, pub Tagged<T>);

impl<T: Serialize> IntoResponse for Versioned<T> {
    fn into_response(self) -> Response {
        let Self(status, Tagged { version, value }) = self;
        (status, [(header::ETAG, format!("\"{version}\""))], Json(value)).into_response()
    }
}

pub fn shown<T>(value: Tagged<T>) -> Versioned<T> {
    Versioned(StatusCode::OK, value)
}

pub fn created<T>(value: Tagged<T>) -> Versioned<T> {
    Versioned(StatusCode::CREATED, value)
}
