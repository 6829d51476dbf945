//! Lists that are read a page at a time.

/// The number of rows in a page. A row may come with a workflow of 400 KiB.
pub(super) const PAGE_ROWS: usize = 100;

/// The place where a list continues: after the row with this position and name.
#[derive(Debug, Clone, Default)]
pub struct Cursor(Option<(f64, String)>);

impl Cursor {
    /// The position and the name that the next rows come after.
    pub(super) fn parts(&self) -> (f64, String) {
        self.0.clone().unwrap_or((f64::NEG_INFINITY, String::new()))
    }

    /// Where the list continues after a page that may hold `limit` rows; `None` if it was the last page.
    pub(super) fn after_page(rows: usize, limit: usize, last: Option<(f64, String)>) -> Option<Self> {
        last.filter(|_| rows == limit).map(|last| Self(Some(last)))
    }
}
