//! Lists, a page at a time.

use axum::{
    Json,
    http::header::LINK,
    response::{IntoResponse, Response},
};
use drover_types::{ApiError, Page};
use serde::{Deserialize, Serialize};

const ITEMS_DEFAULT: usize = 100;
const ITEMS_MAX: usize = 1_000;

/// Which page.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// Items at most, 1 to 1,000; 100 where absent.
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub after: Option<String>,
}

pub fn limit(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(ITEMS_DEFAULT) {
        limit @ 1..=ITEMS_MAX => Ok(limit),
        _ => Err(ApiError::invalid("limit", format!("a page has 1 to {ITEMS_MAX} items"))),
    }
}

impl PageQuery {
    /// The page of `items`, in the order of their keys.
    pub fn cut<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Result<Page<T>, ApiError> {
        let limit = limit(self.limit)?;
        items.sort_by_key(&key);
        if let Some(after) = &self.after {
            items.retain(|item| key(item) > *after);
        }
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(&key);
        Ok(Page { items, next })
    }
}

/// A page, with a link to the next one as RFC 8288 has it.
pub struct Paged<T> {
    pub page: Page<T>,
    pub path: String,
}

impl<T: Serialize> IntoResponse for Paged<T> {
    fn into_response(self) -> Response {
        let next = self.page.next.as_ref().map(|next| format!("<{}?after={}>; rel=\"next\"", self.path, escaped(next)));
        let body = Json(self.page);
        match next {
            Some(link) => ([(LINK, link)], body).into_response(),
            None => body.into_response(),
        }
    }
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_list_once() {
        let items: Vec<u32> = vec![3, 1, 4, 5, 9, 2, 6];
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let query = PageQuery { limit: Some(3), after: after.take() };
            let page = query.cut(items.clone(), u32::to_string).unwrap();
            seen.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 9]);
        assert!(PageQuery { limit: Some(0), after: None }.cut(items, u32::to_string).is_err());
    }
}
