//! What a request to an upstream looks like on an HTTP/1.1 connection.

use crate::body::RequestBody;
use crate::http1::{Ending, Outgoing, put_line};
use crate::upstream::Head;
use http::header;
use http_body::Body;

/// Puts a request into the buffers; nothing is written yet. The length that is written is always the body's own: what is announced
/// and what follows cannot differ.
pub(super) fn begin(sending: &mut Outgoing<RequestBody>, Head { parts, added }: &Head, body: RequestBody) {
    let is_empty = body.is_end_stream();
    let ending = match (is_empty, body.size_hint().exact()) {
        (true, _) => Ending::Length(0),
        (false, Some(length)) => Ending::Length(length),
        (false, None) => Ending::Chunked,
    };
    let head = sending.begin(ending, (!is_empty).then_some(body));
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    for piece in [parts.method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        head.extend_from_slice(piece.as_bytes());
    }
    let mut says_length = false;
    for (name, value) in &parts.headers {
        if *name == header::CONTENT_LENGTH {
            says_length = true;
        } else if *name != header::TRANSFER_ENCODING {
            put_line(head, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    for (name, value) in added {
        put_line(head, name.as_bytes(), value.as_bytes());
    }
    match ending {
        Ending::Length(0) if is_empty && !says_length => {}
        Ending::Length(length) => put_line(head, b"content-length", length.to_string().as_bytes()),
        Ending::Chunked | Ending::Close => put_line(head, b"transfer-encoding", b"chunked"),
    }
    head.extend_from_slice(b"\r\n");
    if ending == Ending::Chunked {
        sending.announce_trailers(&parts.headers);
    }
}
