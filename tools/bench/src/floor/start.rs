//! POST /compute: one recovery, two statements, one object.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::Row;

use super::{ARGUMENTS, Failed, Floor, recover};
use crate::requests::document;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    workflow: Value,
    provider_signature: String,
    agreement_id: String,
    owner: String,
    environment: String,
    nonce: u64,
    valid_until: i64,
    chain_id: u64,
}

pub(super) async fn start(State(floor): State<Arc<Floor>>, body: Bytes) -> Result<Json<Value>, Failed> {
    let request: Request = serde_json::from_slice(&body)?;
    let (nonce, chain) = (request.nonce.to_string(), request.chain_id.to_string());
    let signer = recover(&format!("{}{nonce}", request.owner), &request.provider_signature)?;
    let job_id = uuid::Uuid::new_v4().simple().to_string();
    let text = document(&job_id, &request.workflow).to_string();
    let (_, window, expiry) = ARGUMENTS;
    let created: Option<String> = floor
        .run(async |connection| {
            let query =
                sqlx::query(floor.statements.start).bind(&request.agreement_id).bind(&job_id).bind(&request.owner);
            let query =
                query.bind(1).bind("Warming up").bind(&text).bind(&request.environment).bind(&signer).bind(&chain);
            let query = query.bind(request.valid_until).bind("did:op:5a1f").bind(r#"["did:op:87bd"]"#).bind(&signer);
            let query = query.bind(&nonce).bind(window).bind(false).bind(vec![0_u8; 32]).bind(true).bind(&chain);
            query.bind(expiry).fetch_one(connection).await?.try_get("date_created")
        })
        .await?;
    if created.is_none() {
        return Err(anyhow::anyhow!("the job was not inserted").into());
    }
    let object = json!({
        "apiVersion": "oceanprotocol.com/v1alpha",
        "kind": "WorkFlow",
        "metadata": {
            "name": job_id, "labels": { "workflow": job_id, "app.kubernetes.io/managed-by": "operator-service" }
        },
        "spec": { "owner": request.owner, "agreementId": request.agreement_id, "metadata": request.workflow }
    });
    let sent = floor.client.post(&floor.cluster).header(CONTENT_TYPE, "application/json").body(object.to_string());
    let answer = sent.send().await?.error_for_status()?;
    answer.bytes().await?;
    let statement = floor.statements.registered;
    floor.run(async |connection| sqlx::query(statement).bind(&job_id).execute(connection).await).await?;
    Ok(Json(
        json!([{ "agreementId": request.agreement_id, "jobId": job_id, "owner": request.owner, "dateCreated": created }]),
    ))
}
