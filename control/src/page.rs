//! Pages of lists. A cursor is opaque text that holds the key after which the next page begins,
//! so what is inserted or deleted meanwhile neither doubles nor hides another entry.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::refusal::Refusal;
use crate::store::Connection;
use crate::store::query::{Row, query_as};

pub const LIMIT_MAX: usize = 200;
pub const LIMIT_DEFAULT: usize = 50;

#[derive(Debug, Clone)]
pub struct Page {
    limit: usize,
    /// Empty: from the first.
    pub after: String,
}

#[derive(Debug)]
pub struct Paged<T> {
    pub items: Vec<T>,
    pub next_cursor: Option<String>,
}

impl Page {
    pub fn new(limit: Option<usize>, cursor: Option<&str>) -> Result<Page, Refusal> {
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Refusal::invalid("/limit", format!("a limit is 1 to {LIMIT_MAX}")));
        }
        let after = match cursor {
            None => String::new(),
            Some(cursor) => URL_SAFE_NO_PAD
                .decode(cursor)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .and_then(|text| text.strip_prefix("k:").map(str::to_owned))
                .ok_or_else(|| Refusal::invalid("/cursor", "not a cursor of this API"))?,
        };
        Ok(Page { limit, after })
    }

    /// One more than the page holds, to know whether there is another.
    pub fn fetch(&self) -> i64 {
        self.limit as i64 + 1
    }

    /// Of lists by number, newest first: the page begins below this one.
    pub fn number_before(&self) -> Result<i64, Refusal> {
        match self.after.as_str() {
            "" => Ok(i64::MAX),
            after => {
                after.parse().map_err(|_| Refusal::invalid("/cursor", "not a cursor of this list"))
            }
        }
    }

    /// What belongs to one row of another table: `sql` takes its id, the key after which the page
    /// begins, and how many to fetch.
    pub async fn of<R: Row>(
        &self,
        read: &mut Connection,
        sql: &'static str,
        owner: &str,
        key: impl Fn(&R) -> String,
    ) -> Result<Paged<R>, Refusal> {
        let rows = query_as(sql).bind(owner).bind(&self.after).bind(self.fetch());
        Ok(self.cut(rows.fetch_all(read).await?, key))
    }

    pub fn cut<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let next_cursor = items
            .last()
            .filter(|_| more)
            .map(|last| URL_SAFE_NO_PAD.encode(format!("k:{}", key(last))));
        Paged { items, next_cursor }
    }
}
