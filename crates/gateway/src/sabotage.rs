//! The deliberate faults behind [`crate::Sabotage`]: they exist so that the checks which must find them can be seen to.
//! Nothing here runs unless a configuration asks for it by name.

use crate::body::RequestBody;
use crate::service::Service;
use http::Request;
use http_body_util::{BodyExt, Limited};
use rehome_part::Side;

/// Bodies beyond this are not doubled; the second copy would not fit.
const MAX_BODY: usize = 16 << 20;

/// `release-twice`: sends a copy of the write, waits for its answer, and gives the write back to be sent again.
pub(crate) async fn send_once_more(
    service: &Service,
    side: Side,
    request: Request<RequestBody>,
) -> Request<RequestBody> {
    let (parts, body) = request.into_parts();
    let Ok(collected) = Limited::new(body, MAX_BODY).collect().await else {
        return Request::from_parts(parts, RequestBody::Whole(None));
    };
    let bytes = collected.to_bytes();
    let whole = || RequestBody::Whole((!bytes.is_empty()).then(|| bytes.clone()));
    let copy = Request::from_parts(parts.clone(), whole());
    if let Ok((mut connection, _)) = service.side(side).group.connect(None).await
        && let Ok(response) = connection.send(copy).await
    {
        let _answer = response.into_body().collect().await;
    }
    Request::from_parts(parts, whole())
}
