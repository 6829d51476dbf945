//! GET OP/runningjobs

use crate::support::{App, Call};

#[tokio::test]
async fn empty() {
    let app = App::start().await;
    assert_eq!(app.send(Call::get("runningjobs")).await.ok(), serde_json::json!([]));
}
