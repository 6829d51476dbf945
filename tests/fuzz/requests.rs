//! Any request is answered, and never with an error of this service; the same request is read the same again.

use crate::service::{self, Sent};

pub fn check(data: &[u8]) {
    let Some(sent) = Sent::parse(data).filter(|sent| !sent.needs_cluster()) else { return };
    let answer = service::send(&sent);
    answer.check(&sent);
    assert_eq!(answer, service::send(&sent), "{sent:?}");
}
