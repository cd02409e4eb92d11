//! What an error answer or a broken connection means to the caller. No secret and no signature gets into a text.

use super::xml::{self, Failure};
use http::{HeaderMap, StatusCode};
use rehome_part::{Error, ErrorKind, Retry};

const LONGEST_MESSAGE_CHARS: usize = 300;

/// An answer that was not what was asked for.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    /// The service's own code (`NoSuchKey`); empty when the answer has none.
    pub code: String,
    pub message: String,
    region: Option<String>,
}

impl Refusal {
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let Failure { code, message, region, endpoint } = xml::failure(body).unwrap_or_default();
        let region = super::headers::text(headers, "x-amz-bucket-region").map(String::from).or(region);
        let message = match endpoint {
            Some(endpoint) => format!("{message} (endpoint {endpoint})"),
            None => message,
        };
        let message = message.chars().take(LONGEST_MESSAGE_CHARS).collect();
        Self { status, code, message, region }
    }

    pub fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// No object of that key; not: no bucket. An answer without a body (HEAD) cannot tell and counts as the former.
    pub fn is_missing_key(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && !matches!(self.code.as_str(), "NoSuchBucket" | "NoSuchUpload")
    }

    /// Might the server take the same request with a signed payload and without a checksum header?
    pub fn dislikes_the_form(&self) -> bool {
        const CODES: [&str; 6] = [
            "InvalidRequest",
            "InvalidArgument",
            "NotImplemented",
            "XAmzContentSHA256Mismatch",
            "SignatureDoesNotMatch",
            "MissingSecurityHeader",
        ];
        matches!(self.status.as_u16(), 400 | 403 | 411 | 501) && CODES.contains(&self.code.as_str())
    }

    /// `doing` like "read media/a.jpg"; `whose` names the credentials in use.
    pub fn into_error(self, doing: &str, whose: &str) -> Error {
        let (kind, retry) = self.meaning();
        let told = match (self.code.is_empty(), self.message.is_empty()) {
            (true, _) => self.status.to_string(),
            (false, true) => self.code.clone(),
            (false, false) => format!("{}: {}", self.code, self.message),
        };
        let error = Error::new(kind, retry, format!("{doing}: {told}"));
        match self.hint(kind, whose) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    fn meaning(&self) -> (ErrorKind, Retry) {
        use ErrorKind::{Changed, Corrupt, Credentials, Full, Network, NotFound, Other, Unsupported};
        use Retry::{Permanent, Temporary};
        match self.code.as_str() {
            "NoSuchBucket" | "NoSuchKey" | "NoSuchUpload" | "NoSuchVersion" => (NotFound, Permanent),
            "AccessDenied"
            | "AllAccessDisabled"
            | "SignatureDoesNotMatch"
            | "InvalidAccessKeyId"
            | "InvalidSecurity"
            | "InvalidToken"
            | "ExpiredToken"
            | "RequestTimeTooSkewed"
            | "AuthorizationHeaderMalformed"
            | "AccountProblem"
            | "InvalidPayer"
            | "NotSignedUp"
            | "MissingAuthenticationToken" => (Credentials, Permanent),
            "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "StorageFull" => {
                (Full, Permanent)
            }
            "EntityTooLarge" | "TooManyParts" | "KeyTooLongError" | "InvalidObjectName"
            | "MetadataTooLarge" => (Unsupported, Permanent),
            "PreconditionFailed" => (Changed, Permanent),
            "ConditionalRequestConflict" => (Changed, Temporary),
            "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch" => {
                (Corrupt, Temporary)
            }
            "IncompleteBody"
            | "RequestTimeout"
            | "SlowDown"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "InternalError"
            | "ServiceUnavailable"
            | "OperationAborted"
            | "ServerBusy"
            | "XMinioServerNotInitialized" => (Network, Temporary),
            "NotImplemented" | "MethodNotAllowed" | "InvalidObjectState" => (Unsupported, Permanent),
            "InvalidArgument" if self.message.to_ascii_lowercase().contains("object name") => {
                (Unsupported, Permanent)
            }
            "InvalidURI" => (Unsupported, Permanent),
            _ => match self.status.as_u16() {
                401 | 403 => (Credentials, Permanent),
                404 => (NotFound, Permanent),
                405 | 501 => (Unsupported, Permanent),
                412 => (Changed, Permanent),
                413 => (Unsupported, Permanent),
                416 => (Changed, Permanent),
                507 => (Full, Permanent),
                408 | 425 | 429 | 500 | 502 | 503 | 504 => (Network, Temporary),
                307 => (Network, Temporary),
                _ => (Other, Permanent),
            },
        }
    }

    fn hint(&self, kind: ErrorKind, whose: &str) -> Option<String> {
        let elsewhere = self.status == StatusCode::MOVED_PERMANENTLY
            || matches!(self.code.as_str(), "PermanentRedirect" | "AuthorizationHeaderMalformed");
        if let Some(region) = self.region.as_ref().filter(|_| elsewhere) {
            return Some(format!("set `region = \"{region}\"` for this store"));
        }
        match (self.code.as_str(), kind) {
            ("RequestTimeTooSkewed", _) => {
                Some("set this machine's clock (for example with `timedatectl set-ntp true`)".into())
            }
            ("ExpiredToken", _) => Some(format!("renew the session token of {whose}")),
            ("InvalidObjectState", _) => Some("restore the object from the archive first".into()),
            ("NoSuchBucket", _) => Some("create the bucket, or correct its name".into()),
            (_, ErrorKind::Credentials) => Some(format!("check {whose}, and what that identity may do")),
            (_, ErrorKind::Full) => Some("make room or raise the quota".into()),
            ("EntityTooLarge", _) => Some("the object is larger than the store allows".into()),
            _ => None,
        }
    }
}

/// A request that got no answer.
pub fn transport(doing: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut causes = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !causes.contains(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    let text = format!("{doing}: {}", causes.join(": "));
    if causes.iter().any(|cause| cause.contains("certificate")) {
        return Error::permanent(ErrorKind::Network, text)
            .hint("check the endpoint's name; a private authority is trusted through SSL_CERT_FILE");
    }
    Error::temporary(ErrorKind::Network, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, code: &str) -> Error {
        let body = format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        let status = StatusCode::from_u16(status).unwrap();
        Refusal::new(status, &HeaderMap::new(), &body).into_error("read k", "access_key and secret_key")
    }

    #[test]
    fn kinds_follow_the_code_and_then_the_status() {
        let cases = [
            (404, "NoSuchBucket", ErrorKind::NotFound, false),
            (403, "AccessDenied", ErrorKind::Credentials, false),
            (403, "SignatureDoesNotMatch", ErrorKind::Credentials, false),
            (403, "RequestTimeTooSkewed", ErrorKind::Credentials, false),
            (507, "", ErrorKind::Full, false),
            (403, "QuotaExceeded", ErrorKind::Full, false),
            (412, "PreconditionFailed", ErrorKind::Changed, false),
            (503, "SlowDown", ErrorKind::Network, true),
            (400, "RequestTimeout", ErrorKind::Network, true),
            (429, "", ErrorKind::Network, true),
            (501, "NotImplemented", ErrorKind::Unsupported, false),
            (400, "BadDigest", ErrorKind::Corrupt, true),
            (418, "Teapot", ErrorKind::Other, false),
        ];
        for (status, code, kind, temporary) in cases {
            let error = error(status, code);
            assert_eq!((error.kind, error.is_temporary()), (kind, temporary), "{status} {code}");
        }
    }

    #[test]
    fn hints_name_what_to_change() {
        assert!(error(403, "AccessDenied").hint.unwrap().contains("access_key and secret_key"));
        assert!(error(403, "RequestTimeTooSkewed").hint.unwrap().contains("clock"));
        let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>";
        let refusal = Refusal::new(StatusCode::BAD_REQUEST, &HeaderMap::new(), body);
        assert!(refusal.into_error("x", "y").hint.unwrap().contains("eu-west-1"));
    }

    #[test]
    fn a_missing_key_is_not_a_missing_bucket() {
        let refusal = |body| Refusal::new(StatusCode::NOT_FOUND, &HeaderMap::new(), body);
        assert!(refusal("<Error><Code>NoSuchKey</Code></Error>").is_missing_key());
        assert!(refusal("").is_missing_key());
        assert!(!refusal("<Error><Code>NoSuchBucket</Code></Error>").is_missing_key());
    }
}
