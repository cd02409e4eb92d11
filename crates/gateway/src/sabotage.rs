//! The deliberate faults behind [`crate::Sabotage`]: they exist so that the checks which must find them can be seen to.
//! Nothing here runs unless a configuration asks for it by name.

use crate::body::RequestBody;
use crate::service::Service;
use crate::upstream::Head;
use http_body_util::{BodyExt, Limited};
use rehome_part::Side;

/// Bodies beyond this are not doubled; the second copy would not fit.
const MAX_BODY: usize = 16 << 20;

/// `release-twice`: sends a copy of the write, waits for its answer, and gives the write's body back to be sent again.
pub(crate) async fn send_once_more(
    service: &Service,
    side: Side,
    head: &Head,
    body: RequestBody,
) -> RequestBody {
    let Ok(collected) = Limited::new(body, MAX_BODY).collect().await else {
        return RequestBody::Whole(None);
    };
    let bytes = collected.to_bytes();
    let whole = || RequestBody::Whole((!bytes.is_empty()).then(|| bytes.clone()));
    if let Ok((mut connection, _)) = service.side(side).group.connect(None).await {
        connection.begin(head, whole());
        if let Some(Ok(_)) = connection.answer(service.plan.upstream_timeout, None).await {
            // Whatever it says is nobody's.
            let _answer = connection.drain().await;
        }
    }
    whole()
}
