//! The tags of a repository.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Deserialize;

use super::http::{Ask, Call};
use super::{Authorize, Registry};
use stoker_core::error::{CallError, Failure};

/// Tags on a page, which no registry has to heed: more than this some refuse.
const PAGE: usize = 1000;
/// Pages of all that is read. With [`BYTES`] it is room for every tag that ECR lets a repository have.
const PAGES: usize = 300;
/// Bytes of all that is read.
const BYTES: usize = 16 << 20;

#[derive(Deserialize)]
struct Page {
    /// Some registries write `null` where there are none.
    tags: Option<Vec<String>>,
}

impl Registry {
    /// Every tag of a repository. Any text may be among them: what it means is for `names` to say.
    pub async fn tags(
        &self,
        authorize: &impl Authorize,
        repository: &impl Display,
    ) -> Result<BTreeSet<String>, CallError> {
        let call = Call { operation: "registry:ListTags", subject: repository.to_string() };
        let mut url = format!("{}/v2/{repository}/tags/list?n={PAGE}", self.base);
        let mut tags = BTreeSet::new();
        let mut room = BYTES;
        for _ in 0..PAGES {
            let response = self.send(authorize, &call, &Ask::new("GET", &url)).await?;
            let response = call.expect_success(response).await?;
            let next = response.headers().get_all("link").find_map(next_page).map(|next| self.resolve(next));
            let page = call.body(response, room).await?;
            room -= page.len();
            let page: Page = serde_json::from_slice(&page)
                .map_err(|_| call.fail(Failure::Unavailable, "the registry answers no list of tags"))?;
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { return Ok(tags) };
            if !self.is_own(&next) {
                let cause = "the registry sends to another host for more tags";
                return Err(call.fail(Failure::Refused, cause));
            }
            url = next;
        }
        let cause = format!("the registry has more than {PAGES} pages of tags");
        Err(call.fail(Failure::Refused, cause))
    }
}

/// Where the next page is, as a `Link` header says it: `</v2/app/tags/list?last=x>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let (url, parameters) = link.trim_start().strip_prefix('<')?.split_once('>')?;
    let mut parameters = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let is_next = parameters.any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
    });
    is_next.then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        for (link, next) in [
            ("</v2/a/tags/list?n=2&last=b>; rel=\"next\"", Some("/v2/a/tags/list?n=2&last=b")),
            ("<https://registry.example/v2/a>;title=\"a\"; REL=next", Some("https://registry.example/v2/a")),
            ("</v2/a>; rel=\"prev\"", None),
            ("</v2/a>", None),
            ("/v2/a; rel=next", None),
            ("</v2/a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_page(link), next, "{link}");
        }
    }
}
