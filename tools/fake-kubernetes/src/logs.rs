//! What a container wrote.

/// As much of a log is kept, from its end.
pub(crate) const LOG_LIMIT: usize = 1024 * 1024;

/// The end of what a container wrote, and how much came before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Bytes that were written and are no longer kept.
    dropped: u64,
    bytes: Vec<u8>,
}

impl Log {
    /// What is kept.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds to it, or starts over.
    pub(crate) fn write(&mut self, bytes: &[u8], append: bool) {
        if !append {
            self.dropped += self.bytes.len() as u64;
            self.bytes.clear();
        }
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(LOG_LIMIT);
        self.bytes.drain(..excess);
        self.dropped += excess as u64;
    }

    /// Where the next byte will be, counted from the first that was ever written.
    pub(crate) fn end(&self) -> u64 {
        self.dropped + self.bytes.len() as u64
    }

    /// What was written from `position` on and is still kept.
    pub(crate) fn since(&self, position: u64) -> &[u8] {
        let start = position.saturating_sub(self.dropped);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        &self.bytes[start.min(self.bytes.len())..]
    }

    /// Where the last `lines` lines begin.
    pub(crate) fn tail(&self, lines: usize) -> u64 {
        let body = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
        let start = if lines == 0 {
            self.bytes.len()
        } else {
            body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').nth(lines - 1).map_or(0, |(at, _)| at + 1)
        };
        self.dropped + start as u64
    }

    /// Where what is kept begins.
    pub(crate) fn start(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str, lines: usize) -> String {
        let mut log = Log::default();
        log.write(text.as_bytes(), true);
        String::from_utf8_lossy(log.since(log.tail(lines))).into_owned()
    }

    #[test]
    fn the_tail_counts_lines_with_and_without_an_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a\nb\nc", 9), "a\nb\nc");
        assert_eq!(tail("a\nb", 0), "");
        assert_eq!(tail("", 3), "");
    }

    #[test]
    fn the_end_is_kept_and_positions_stay_true() {
        let mut log = Log::default();
        log.write(&vec![b'x'; LOG_LIMIT], true);
        log.write(b"the end", true);
        assert_eq!(log.bytes().len(), LOG_LIMIT);
        assert_eq!(log.start(), 7);
        assert_eq!(log.since(log.end() - 7), b"the end");
        assert_eq!(log.since(0).len(), LOG_LIMIT);
    }
}
