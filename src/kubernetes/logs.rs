//! The logs of pods.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::io::{AsyncRead, AsyncReadExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};

use super::client::{LIST_PAGE_SIZE, within};
use super::{Cluster, ClusterError};
use crate::domain::{Component, JobId, Namespace};

/// How long reading a log may take.
const LOG_TIMEOUT: Duration = Duration::from_secs(20);
/// The maximum number of bytes of a log's start: they have to fit a buffered response of Lambda (6 MB).
const START_BYTES: usize = 5 * 1024 * 1024;
/// The maximum number of bytes of a log's end.
const END_BYTES: usize = 64 * 1024;
/// How many lines are requested to find the end of a log. If they exceed `TAIL_BYTES`, fewer are requested.
const TAIL_LINES: [i64; 3] = [10_000, 100, 1];
/// The maximum number of bytes that are read to find the end of a log.
const TAIL_BYTES: usize = 16 * 1024 * 1024;

/// The part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPart {
    /// The first 5 MiB.
    Start,
    /// The last 64 KiB.
    End,
}

impl Cluster {
    /// Reads the log of the youngest pod of a job's step. Fails after 20 seconds.
    ///
    /// Returns `None` if there is no such pod. A pod that has not started has an empty start and no end.
    pub async fn read_log(
        &self,
        job_id: &JobId,
        component: Component,
        namespace: &Namespace,
        part: LogPart,
    ) -> Result<Option<Vec<u8>>, ClusterError> {
        within(LOG_TIMEOUT, async {
            let pods: Api<Pod> = self.job_api(job_id, namespace).await?;
            let Some(pod) = youngest_pod(&pods, job_id, component).await? else { return Ok(None) };
            match part {
                LogPart::Start => read_start(&pods, &pod).await,
                LogPart::End => read_end(&pods, &pod).await,
            }
        })
        .await
    }
}

/// The name of a step's youngest pod.
async fn youngest_pod(pods: &Api<Pod>, job_id: &JobId, component: Component) -> Result<Option<String>, ClusterError> {
    let labels = format!("workflow={job_id},component={}", component.as_str());
    let found = pods.list_metadata(&ListParams::default().labels(&labels).limit(LIST_PAGE_SIZE)).await?;
    let youngest = found.items.into_iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone());
    Ok(youngest.map(|pod| pod.name_any()))
}

async fn read_start(pods: &Api<Pod>, pod: &str) -> Result<Option<Vec<u8>>, ClusterError> {
    let params = LogParams { limit_bytes: Some(START_BYTES as i64), ..LogParams::default() };
    let stream = match pods.log_stream(pod, &params).await {
        Ok(stream) => stream,
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
        // The API server's response for a pod that has not started.
        Err(kube::Error::Api(status)) if status.code == 400 => return Ok(Some(Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let mut log = Vec::new();
    let mut stream = std::pin::pin!(stream.take(START_BYTES as u64));
    stream.read_to_end(&mut log).await.map_err(kube::Error::ReadEvents)?;
    Ok(Some(log))
}

async fn read_end(pods: &Api<Pod>, pod: &str) -> Result<Option<Vec<u8>>, ClusterError> {
    // The API server can count from the end in lines, not in bytes.
    for lines in TAIL_LINES {
        let params = LogParams { tail_lines: Some(lines), ..LogParams::default() };
        let stream = match pods.log_stream(pod, &params).await {
            Ok(stream) => stream,
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (end, length) = end_of(stream.take(TAIL_BYTES as u64)).await.map_err(kube::Error::ReadEvents)?;
        if length < TAIL_BYTES || lines == 1 {
            return Ok(Some(end.to_vec()));
        }
    }
    Ok(None)
}

/// Reads to the end of a stream. Returns the last bytes and how many there were in all.
async fn end_of(stream: impl AsyncRead) -> std::io::Result<(BytesMut, usize)> {
    let mut stream = std::pin::pin!(stream);
    let (mut end, mut chunk, mut length) = (BytesMut::new(), vec![0; END_BYTES], 0);
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok((end, length));
        }
        length += read;
        end.extend_from_slice(&chunk[..read]);
        let _ = end.split_to(end.len().saturating_sub(END_BYTES));
    }
}
