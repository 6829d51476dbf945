//! Lists that are read a page at a time.

/// The number of rows in a page. A row may come with a workflow of 400 KiB.
pub(crate) const PAGE_ROWS: usize = 100;

/// The place where a list continues: after the row with this position and name.
#[derive(Debug, Clone, Default)]
pub struct Cursor(Option<(f64, String)>);

impl Cursor {
    /// The position and the name that the next rows come after.
    pub(crate) fn parts(&self) -> (f64, String) {
        self.0.clone().unwrap_or((f64::NEG_INFINITY, String::new()))
    }

    /// After the row with this position and name.
    pub(crate) fn at(position: f64, name: &impl ToString) -> Self {
        Self(Some((position, name.to_string())))
    }
}

/// The key that the next page comes after; `None` if this page, which may hold `limit` rows, was the last.
pub(crate) fn end_of_page<T, K>(rows: &[T], limit: usize, key: impl FnOnce(&T) -> K) -> Option<K> {
    rows.last().filter(|_| rows.len() == limit).map(key)
}
