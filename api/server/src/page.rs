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
    #[param(minimum = 1, maximum = 1000)]
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
    /// The page of the list at `path`, in the order of its items' keys.
    pub fn cut<T>(&self, path: &str, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Result<Paged<T>, ApiError> {
        let limit = limit(self.limit)?;
        items.sort_by_key(&key);
        if let Some(after) = &self.after {
            items.retain(|item| key(item) > *after);
        }
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(&key);
        let query = vec![("limit", self.limit.map(|limit| limit.to_string()))];
        Ok(Paged { page: Page { items, next }, path: path.into(), query })
    }
}

/// A page, with a link to the next one as RFC 8288 has it.
pub struct Paged<T> {
    pub page: Page<T>,
    pub path: String,
    /// What was asked beside `after`: the next page is of the same list.
    pub query: Vec<(&'static str, Option<String>)>,
}

impl<T> Paged<T> {
    fn link(&self) -> Option<String> {
        let next = [("after", Some(self.page.next.clone()?))];
        let given = self.query.iter().chain(&next);
        let pairs = given.filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_ref()?))));
        Some(format!("<{}?{}>; rel=\"next\"", self.path, pairs.collect::<Vec<_>>().join("&")))
    }
}

impl<T: Serialize> IntoResponse for Paged<T> {
    fn into_response(self) -> Response {
        let link = self.link();
        let body = Json(self.page);
        match link {
            Some(link) => ([(LINK, link)], body).into_response(),
            None => body.into_response(),
        }
    }
}

/// A part of a path or query, with what is special in URLs escaped.
pub fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that lost the filter led into another list.
    #[test]
    fn the_link_asks_for_the_rest_of_the_same_list() {
        let query = PageQuery { limit: Some(1), after: None };
        let mut paged = query.cut("/v1/migrations", vec!["a/b", "c"], |text| text.to_string()).unwrap();
        paged.query.push(("volume", Some("disk 1".into())));
        paged.query.push(("colour", None));
        let link = paged.link().unwrap();
        assert_eq!(link, "</v1/migrations?limit=1&volume=disk%201&after=a%2Fb>; rel=\"next\"");
    }

    #[test]
    fn pages_cover_the_list_once() {
        let items: Vec<u32> = vec![3, 1, 4, 5, 9, 2, 6];
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let query = PageQuery { limit: Some(3), after: after.take() };
            let paged = query.cut("/v1/numbers", items.clone(), u32::to_string).unwrap();
            let link = paged.link();
            seen.extend(paged.page.items);
            assert_eq!(link.is_some(), paged.page.next.is_some());
            match paged.page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 9]);
        assert!(PageQuery { limit: Some(0), after: None }.cut("/v1/numbers", items, u32::to_string).is_err());
    }
}
