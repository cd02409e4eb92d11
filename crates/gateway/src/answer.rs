//! An answer on its way to a client. An upstream's lines go as they came where nobody has to look one up; a header map is made of
//! them only where one is wanted, which is dearer than all the rest that is done to an answer.

use crate::body::ResponseBody;
use crate::headers;
use crate::http1::{Field, Lines, Unclear};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header, response};
use hyper::ext::ReasonPhrase;

/// The head of an upstream's answer.
#[derive(Debug)]
pub(crate) struct AnswerHead {
    pub status: StatusCode,
    /// In which the upstream spoke.
    pub version: Version,
    /// Where it is not the usual one.
    pub reason: Option<ReasonPhrase>,
    pub headers: Headers,
}

#[derive(Debug)]
pub(crate) enum Headers {
    Lines(Lines),
    Map(HeaderMap),
}

impl From<response::Parts> for AnswerHead {
    fn from(parts: response::Parts) -> Self {
        Self {
            status: parts.status,
            version: parts.version,
            reason: None,
            headers: Headers::Map(parts.headers),
        }
    }
}

impl AnswerHead {
    /// May this answer never end?
    pub fn is_stream(&self) -> bool {
        let kind = match &self.headers {
            Headers::Lines(lines) => lines.value(Field::ContentType),
            Headers::Map(map) => map.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
        };
        kind.is_some_and(headers::is_stream_type)
    }

    pub fn sets_cookie(&self) -> bool {
        match &self.headers {
            Headers::Lines(lines) => lines.has(Field::SetCookie),
            Headers::Map(map) => map.contains_key(header::SET_COOKIE),
        }
    }

    /// With a header map, as a client gets it. `id`: the request's, in case the upstream does not say it.
    ///
    /// # Errors
    /// A line is no header after all.
    pub fn into_prepared(self, id: &HeaderValue) -> Result<response::Parts, Unclear> {
        let mut parts = self.into_parts()?;
        headers::prepare_response(&mut parts.headers, parts.version, id);
        parts.version = Version::HTTP_11;
        Ok(parts)
    }

    /// With a header map, as it came.
    ///
    /// # Errors
    /// A line is no header after all.
    pub fn into_parts(self) -> Result<response::Parts, Unclear> {
        let (mut parts, ()) = Response::new(()).into_parts();
        (parts.status, parts.version) = (self.status, self.version);
        parts.headers = match self.headers {
            // With places for what the gateway adds.
            Headers::Lines(lines) => lines.map(2)?,
            Headers::Map(map) => map,
        };
        if let Some(reason) = self.reason {
            parts.extensions.insert(reason);
        }
        Ok(parts)
    }
}

/// What a client gets.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The gateway's own, or one that was made ready for the client.
    Ready(Response<ResponseBody>),
    Passed(Passed),
}

/// An upstream's answer whose lines need no more than to be passed on, but for those that concern one connection only.
#[derive(Debug)]
pub(crate) struct Passed {
    pub status: StatusCode,
    pub version: Version,
    pub reason: Option<ReasonPhrase>,
    pub lines: Lines,
    /// Of the request, in case the upstream does not say it.
    pub id: HeaderValue,
    pub body: ResponseBody,
}

impl From<Response<ResponseBody>> for Answer {
    fn from(response: Response<ResponseBody>) -> Self {
        Self::Ready(response)
    }
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Ready(response) => response.status(),
            Self::Passed(passed) => passed.status,
        }
    }

    /// With a header map, as every client but the gateway's own HTTP/1.1 wants it.
    pub fn into_response(self) -> Response<ResponseBody> {
        let Passed { status, version, reason, lines, id, body } = match self {
            Self::Ready(response) => return response,
            Self::Passed(passed) => passed,
        };
        let head = AnswerHead { status, version, reason, headers: Headers::Lines(lines) };
        match head.into_prepared(&id) {
            Ok(parts) => Response::from_parts(parts, body),
            // The parser that found the lines is not more lenient than the map.
            Err(unclear) => {
                let mut response = Response::new(ResponseBody::text(format!("{unclear}\n")));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}

impl Passed {
    /// Can the lines be passed on as they came? Not where one names others, or has to be added to.
    pub fn suits(lines: &Lines) -> bool {
        ![Field::Connection, Field::Trailer, Field::Upgrade, Field::Via].iter().any(|field| lines.has(*field))
    }
}
