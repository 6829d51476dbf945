//! /runningjobs with large workflows.

use super::http::{BARE, Site, target};
use super::{Run, http::Times};
use crate::database::Jobs;
use crate::load::{Requests, alternate};
use crate::requests::get;

const UNFINISHED: usize = 5_000;

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    if !run.wants("lists") {
        return Ok(());
    }
    let jobs = |workflow| Jobs { number: UNFINISHED, unfinished: UNFINISHED, status: 1, workflow };
    let long = Site::open(run, "workflows_of_100_kb", jobs(100_000)).await?;
    let short = Site::open(run, "workflows_of_1_kb", jobs(1_000)).await?;
    let request = Requests::repeated(vec![get("/api/v1/operator/runningjobs")]);
    let (mut lengths, mut bare) = (Times::default(), Times::default());
    for _ in 0..run.settings.rounds {
        let service = target(&long.service, &request);
        lengths.add(&alternate(&service, &target(&short.service, &request), 1, run.settings.time).await?);
        bare.add(&alternate(&service, &target(&long.floor, &request), 1, run.settings.time).await?);
    }
    lengths.report_median(run, "/runningjobs, 5,000 jobs of 100 kB", "of 1 kB", 1.1);
    bare.report_median(run, "/runningjobs, 5,000 jobs", BARE, 1.3);
    run.stack.drop(long.database).await?;
    run.stack.drop(short.database).await
}
