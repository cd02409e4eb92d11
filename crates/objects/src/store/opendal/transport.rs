//! OpenDAL's requests over the same client that the S3 driver uses: one TLS set-up, one set of time limits, no second HTTP
//! stack in the program.

use crate::store::s3::wire::{Connection, Outgoing, Receiving};
use http::{Request, Response};
use opendal::{Buffer, Error, ErrorKind};
use opendal::{HttpBody, HttpTransport};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

pub(super) struct Transport(pub Connection);

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let (mut head, content) = request.into_parts();
        // OpenDAL hands over absolute addresses; the client wants a host header that fits them.
        if let (false, Some(authority)) =
            (head.headers.contains_key(http::header::HOST), head.uri.authority())
            && let Ok(host) = http::HeaderValue::from_str(authority.as_str())
        {
            head.headers.insert(http::header::HOST, host);
        }
        let doing = format!("{} {}", head.method, head.uri.path());
        let is_head = head.method == http::Method::HEAD;
        let outgoing = Outgoing::new(content.to_bytes());
        let answer = self.0.send(Request::from_parts(head, outgoing), &doing).await.map_err(broken)?;
        let (head, incoming) = answer.into_parts();
        let announced = head
            .headers
            .get(http::header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
            .filter(|_| !is_head);
        let receiving = Receiving::new(incoming, announced.unwrap_or(u64::MAX), &doing);
        Ok(Response::from_parts(head, HttpBody::new(Stream(Mutex::new(receiving)), announced)))
    }
}

/// A body that may be shared between threads, as OpenDAL wants it, although only one reads it.
struct Stream(Mutex<Receiving>);

impl futures::Stream for Stream {
    type Item = opendal::Result<Buffer>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let receiving = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        Pin::new(receiving).poll_next(context).map(|item| Some(item?.map(Buffer::from).map_err(broken)))
    }
}

fn broken(error: rehome_part::Error) -> Error {
    let temporary = error.is_temporary();
    let told = Error::new(ErrorKind::Unexpected, error.text);
    if temporary { told.set_temporary() } else { told }
}
