//! Listings page by page, in both versions of the call; the next page is on its way while one is used.

use super::dialect::Listing;
use super::{Inner, xml};
use crate::store::Entry;
use futures::stream::{self, BoxStream, StreamExt};
use http::Method;
use rehome_part::{Error, ErrorKind, Result};
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// What a page of a listing is asked with.
#[derive(Debug, Clone, Default)]
pub(super) struct PagePosition {
    /// The whole prefix, the store's own included.
    pub prefix: String,
    pub after: Option<String>,
    pub token: Option<String>,
}

impl Inner {
    pub(super) async fn page(
        &self,
        position: PagePosition,
        most: u16,
    ) -> Result<(Vec<Entry>, Option<PagePosition>)> {
        let doing = format!("list {}", self.settings.address);
        let most = most.to_string();
        let mut query = vec![("encoding-type", "url"), ("max-keys", most.as_str())];
        if !position.prefix.is_empty() {
            query.push(("prefix", &position.prefix));
        }
        match self.settings.dialect.listing {
            Listing::Second => {
                query.push(("list-type", "2"));
                match (&position.token, &position.after) {
                    (Some(token), _) => query.push(("continuation-token", token)),
                    (None, Some(after)) => query.push(("start-after", after)),
                    (None, None) => {}
                }
            }
            Listing::First => query.extend(position.after.iter().map(|after| ("marker", after.as_str()))),
        }
        let answer =
            self.ask(Method::GET, None, &query, &doing).await.map_err(|failed| self.fail(failed, &doing))?;
        let document = self.document(answer, &doing).await?;
        let page = xml::page(&document).map_err(|error| self.at_side(error))?;
        let next = self.next_position(&page, &position, &doing)?;
        let mut entries = page.entries;
        if !self.settings.prefix.is_empty() {
            for entry in &mut entries {
                let Some(key) = entry.key.strip_prefix(&self.settings.prefix) else {
                    let text = format!("{doing}: the key `{}` is outside what was asked for", entry.key);
                    return Err(self.error(ErrorKind::Corrupt, text));
                };
                entry.key = key.to_owned();
            }
        }
        Ok((entries, next))
    }

    fn next_position(
        &self,
        page: &xml::Page,
        position: &PagePosition,
        doing: &str,
    ) -> Result<Option<PagePosition>> {
        if !page.truncated {
            return Ok(None);
        }
        let last = page.entries.last().map(|entry| entry.key.clone());
        let next = match (&page.token, self.settings.dialect.listing) {
            (Some(token), Listing::Second) => PagePosition { token: Some(token.clone()), ..position.clone() },
            // No token: the last key is as good.
            _ => PagePosition {
                after: page.marker.clone().or(last),
                token: None,
                prefix: position.prefix.clone(),
            },
        };
        if next.token == position.token && next.after == position.after {
            let text = format!("{doing}: the listing says there is more and does not go on");
            return Err(self.error(ErrorKind::Corrupt, text));
        }
        Ok(Some(next))
    }

    pub(super) fn pages(self: Arc<Self>, position: PagePosition) -> BoxStream<'static, Result<Entry>> {
        // The next page is on its way while this one is used.
        let fetch = move |inner: Arc<Self>, position: PagePosition| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                inner.page(position, inner.settings.page_keys).await
            }))
        };
        stream::unfold(Some((self, None, Some(position))), move |state| async move {
            let (inner, pending, position) = state?;
            let pending = match (pending, position) {
                (Some(pending), _) => pending,
                (None, Some(position)) => fetch(Arc::clone(&inner), position),
                (None, None) => return None,
            };
            let page = pending.await.unwrap_or_else(|_| Err(Error::cancelled()));
            match page {
                Ok((entries, next)) => {
                    let pending = next.map(|next| fetch(Arc::clone(&inner), next));
                    let lines = entries.into_iter().map(Ok).collect::<Vec<_>>();
                    Some((lines, Some((inner, pending, None))))
                }
                Err(error) => Some((vec![Err(error)], None)),
            }
        })
        .flat_map(stream::iter)
        .boxed()
    }
}
