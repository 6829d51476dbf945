//! The steps of a job.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use devstack::apiserver::ApiServer;
use fake_engine::{Cluster, Engine, Options};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, LogParams};
use serde_json::json;

use crate::bench::{Bench, ENDLESS, ends, fetch, first, until};

async fn runs_to_the_end(bench: Bench) {
    let mut stage = bench.stage(
        "echo progress
         env | sort | cut -d= -f1 | tr '\\n' ' ' > $OUTPUTS/names
         cat $INPUTS/feed/0 $INPUTS/feed/1 $INPUTS/seed/0 > $OUTPUTS/all.csv
         echo \"$DIDS $TRANSFORMATION_DID $secret\" > $OUTPUTS/env.txt
         mkdir -p $OUTPUTS/sub; echo deep > \"$OUTPUTS/sub/a b.txt\"
         ln -s /etc/passwd $OUTPUTS/link
         echo said >&2
         echo ready > $VOLUME/ready; while [ ! -e $VOLUME/go ]; do sleep 0.05; done\n",
    );
    let (one, two) = (format!("{}/one", bench.files), format!("{}/two", bench.files));
    stage["input"] = json!([
        {"index": 0, "id": "did:op:feed", "url": [one, two]},
        {"index": 1, "id": "did:op:seed", "remote": {"type": "url", "url": one, "method": "GET"}},
    ]);
    let id = bench.submit(&stage).await;
    bench.file(&id, "ready").await;

    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.names::<ConfigMap>().await, [id.as_str()]);
    let claims = bench.names::<PersistentVolumeClaim>().await;
    assert_eq!(claims, [format!("{id}-adminlogs"), format!("{id}-data")]);
    let job = bench.job(&id, "algorithm").await;
    assert_eq!(job["metadata"]["labels"], json!({"app": id, "workflow": id, "component": "algorithm"}));
    if bench.settings.cluster == Cluster::Embedded {
        let pod = bench.pod(&id, "algorithm", "a running pod", |pod| pod["status"]["phase"] == "Running").await;
        let name = pod["metadata"]["name"].as_str().unwrap();
        let log = async || bench.api::<Pod>().logs(name, &LogParams::default()).await.unwrap();
        until("the log", async || (log().await == "progress\nsaid\n").then_some(())).await;
    }
    fs::write(bench.volume(&id).join("go"), "").unwrap();

    let (status, outputs) = bench.finished(&id).await;
    assert_eq!(status, 70);
    let kinds: Vec<_> = outputs.iter().map(|file| json!([file["filename"], file["type"]])).collect();
    let expected = [
        ["all.csv", "output"],
        ["env.txt", "output"],
        ["names", "output"],
        ["sub/a b.txt", "output"],
        ["algorithm.log", "algorithmLog"],
        ["configure.log", "configrationLog"],
        ["publish.log", "publishLog"],
    ];
    assert_eq!(json!(kinds), json!(expected));
    assert_eq!(fetch(&outputs[0], None).await, (200, "first\nsecond\nfirst\n".to_owned()));
    assert_eq!(outputs[0]["filesize"], 19);
    assert_eq!(fetch(&outputs[0], Some("bytes=6-11")).await, (206, "second".to_owned()));
    assert_eq!(fetch(&outputs[0], Some("bytes=19-")).await.0, 416);
    let expected = "[\"feed\",\"seed\"] beef 0123456789abcdef0123456789abcdef\n";
    assert_eq!(fetch(&outputs[1], None).await.1, expected);
    // PWD, OLDPWD, SHLVL and _ are the shell's own.
    let names = fetch(&outputs[2], None).await.1;
    let given = names.split_whitespace().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    let expected = ["DIDS", "INPUTS", "LOGS", "OUTPUTS", "PATH", "TRANSFORMATION_DID", "VOLUME", "secret"];
    assert_eq!(given.collect::<Vec<_>>(), expected);
    assert_eq!(fetch(&outputs[3], None).await.1, "deep\n");
    assert_eq!(fetch(&outputs[4], None).await.1, "progress\nsaid\n");
    let outside = outputs[0]["url"].as_str().unwrap().replace("/0/all.csv", "/..%2f..%2fport");
    assert_eq!(fetch(&json!({ "url": outside }), None).await.0, 404);

    until("the end of all objects", async || {
        let left = [
            bench.names::<ConfigMap>().await,
            bench.names::<PersistentVolumeClaim>().await,
            bench.names::<Job>().await,
            bench.names::<Pod>().await,
        ];
        left.iter().all(Vec::is_empty).then_some(())
    })
    .await;
    let free = async || bench.current_jobs().await == 0 && !bench.volume(&id).exists();
    until("a free slot and an empty directory", async || free().await.then_some(())).await;
}

async fn ends_when_its_job_is_deleted(bench: Bench) {
    let id = bench.run(ENDLESS).await;
    let child = bench.file(&id, "child").await;
    bench.api::<Job>().delete(&format!("{id}-algorithm-job"), &DeleteParams::background()).await.unwrap();
    ends(&child).await;
    let finished = bench.finished(&id).await;
    assert_eq!(first(&finished), (70, "part.txt"));
    assert_eq!(fetch(&finished.1[1], None).await.1, "begun\n");
}

#[tokio::test]
async fn a_job_runs_to_the_end() {
    runs_to_the_end(Bench::embedded("whole").await).await;
}

#[tokio::test]
async fn a_job_ends_when_its_algorithm_job_is_deleted() {
    ends_when_its_job_is_deleted(Bench::embedded("deleted").await).await;
}

#[tokio::test]
async fn the_same_without_controllers() {
    let external = |options: &mut Options| options.cluster = Cluster::External;
    let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") else {
        runs_to_the_end(Bench::start("external-whole", external).await).await;
        return ends_when_its_job_is_deleted(Bench::start("external-deleted", external).await).await;
    };
    let start = async |name: &str| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("apiserver-{name}"));
        let server = ApiServer::start(assets.as_ref(), &directory, false).await.unwrap();
        Bench::with(name, Some(server), external).await
    };
    runs_to_the_end(start("bare-whole").await).await;
    ends_when_its_job_is_deleted(start("bare-deleted").await).await;
}

#[tokio::test]
async fn a_job_that_fails_is_waited_for_until_somebody_deletes_it() {
    let bench = Bench::embedded("fails").await;
    let id = bench.run("echo no; exit 3\n").await;
    bench.failed_job(&id, "algorithm").await;
    let pod = bench.pod(&id, "algorithm", "a failed pod", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    // A second job runs to its end meanwhile.
    let other = bench.run("true\n").await;
    assert_eq!(bench.finished(&other).await.0, 70);
    assert_eq!(bench.status(&id).await, 40);
    until("the other slot", async || (bench.current_jobs().await == 1).then_some(())).await;
    bench.waits_until_deleted(&id).await;
}

#[tokio::test]
async fn the_exit_code_can_be_hidden_as_tee_hides_it() {
    let bench = Bench::start("exit-code", |options| options.ignore_exit_code = true).await;
    let id = bench.run("exit 3\n").await;
    assert_eq!(bench.finished(&id).await.0, 70);
}

#[tokio::test]
async fn a_stop_request_ends_the_algorithm_and_publishes_what_there_is() {
    let bench = Bench::embedded("stop").await;
    let id = bench.run(ENDLESS).await;
    let child = bench.file(&id, "child").await;
    sqlx::query("UPDATE jobs SET stopreq = 1 WHERE workflowid = $1").bind(&id).execute(&bench.database).await.unwrap();
    assert_eq!(first(&bench.finished(&id).await), (70, "part.txt"));
    ends(&child).await;
}

#[tokio::test]
async fn a_filter_comes_between_algorithm_and_publishing() {
    let command = "echo filtering; rm $OUTPUTS/secret.txt; echo $$ > $VOLUME/filter; [ -e $VOLUME/quick ] || sleep 300";
    let bench = Bench::start("filter", |options| options.filter = Some(command.to_owned())).await;
    let code = "echo a > $OUTPUTS/secret.txt; echo b > $OUTPUTS/open.txt\n";
    let quick = bench.run(&format!("{code} touch $VOLUME/quick\n")).await;
    let slow = bench.run(code).await;
    let mut stage = bench.stage(code);
    stage["input"][0]["url"] = json!([format!("{}/broken", bench.files)]);
    let broken = bench.submit(&stage).await;

    let (status, outputs) = bench.finished(&quick).await;
    let names: Vec<&str> = outputs.iter().map(|file| file["filename"].as_str().unwrap()).collect();
    assert_eq!((status, names), (70, vec!["open.txt", "algorithm.log", "configure.log", "filter.log", "publish.log"]));
    assert_eq!(outputs[3]["type"], "filteringLog");

    // A filter that hangs ends when its Job is deleted, and where the configure step failed the status stays at 50.
    for (id, end) in [(&slow, 70), (&broken, 50)] {
        let process = bench.file(id, "filter").await;
        assert_eq!(bench.status(id).await, 50);
        bench.delete_job(id, "filter").await;
        ends(&process).await;
        assert_eq!(bench.finished(id).await.0, end);
    }
}

#[tokio::test]
async fn the_announced_limit_ends_the_algorithm() {
    let bench = Bench::start("limit", |options| options.max_job_duration = Duration::from_secs(1)).await;
    let id = bench.run(ENDLESS).await;
    assert_eq!(bench.finished(&id).await.0, 70);
    let statement = sqlx::query_scalar("SELECT stopreq FROM jobs WHERE workflowid = $1");
    let stopreq: i16 = statement.bind(&id).fetch_one(&bench.database).await.unwrap();
    assert_eq!(stopreq, 2);
}

#[tokio::test]
async fn what_cannot_be_provisioned_skips_the_algorithm() {
    let bench = Bench::embedded("provision").await;
    let mut stage = bench.stage("true\n");
    stage["input"][0]["url"] = json!([format!("{}/broken?secret=1", bench.files)]);
    let data = bench.submit(&stage).await;
    let mut stage = bench.stage("");
    stage["algorithm"]["url"] = json!(format!("{}/broken", bench.files));
    let algorithm = bench.submit(&stage).await;

    let (status, outputs) = bench.finished(&data).await;
    assert_eq!((status, &outputs[0]["type"]), (31, &json!("configrationLog")));
    let log = fetch(&outputs[0], None).await.1;
    assert!(log.contains("500") && !log.contains("secret"), "{log}");
    assert_eq!(bench.finished(&algorithm).await.0, 32);
}

#[tokio::test]
async fn an_algorithm_may_come_from_a_url() {
    let bench = Bench::embedded("url").await;
    let mut stage = bench.stage("");
    stage["algorithm"]["remote"] = json!({"type": "url", "url": format!("{}/code", bench.files)});
    let (status, outputs) = bench.finished(&bench.submit(&stage).await).await;
    assert_eq!((status, fetch(&outputs[0], None).await.1.as_str()), (70, "from afar\n"));
}

#[tokio::test]
async fn every_step_ends_when_its_job_is_deleted_in_the_foreground() {
    let bench = Bench::embedded("foreground").await;
    // The configure step waits for an input.
    let mut stage = bench.stage("true\n");
    stage["input"][0]["url"] = json!([format!("{}/endless", bench.files)]);
    let configure = bench.submit(&stage).await;
    let algorithm = bench.run(ENDLESS).await;
    // The publish step fails: the outputs are not a directory.
    let publish = bench.run("rm -r $OUTPUTS; echo part > $OUTPUTS\n").await;

    bench.pod(&configure, "configure", "a running pod", |pod| pod["status"]["phase"] == "Running").await;
    let child = bench.file(&algorithm, "child").await;
    bench.failed_job(&publish, "publish").await;
    assert_eq!((bench.status(&configure).await, bench.status(&publish).await), (20, 60));
    for (id, step) in [(&configure, "configure"), (&algorithm, "algorithm"), (&publish, "publish")] {
        bench.delete_job(id, step).await;
    }
    ends(&child).await;
    // A configure step that did not report how it ended has failed.
    let (status, outputs) = bench.finished(&configure).await;
    assert_eq!((status, &outputs[0]["type"]), (20, &json!("configrationLog")));
    assert_eq!(first(&bench.finished(&algorithm).await), (70, "part.txt"));
    assert_eq!(bench.finished(&publish).await, (70, vec![]));
}

#[tokio::test]
async fn what_the_real_engine_stumbles_over_costs_a_slot() {
    let bench = Bench::embedded("slot").await;
    let mut stage = bench.stage("true\n");
    stage["algorithm"]["container"].as_object_mut().unwrap().remove("image");
    let lacking = bench.submit(&stage).await;
    let mut stage = bench.stage("true\n");
    stage["comment"] = json!("beyond LATIN9: \u{4e2d}");
    let odd = bench.submit(&stage).await;
    until("a lost slot", async || (bench.current_jobs().await == 1).then_some(())).await;
    // announce() ends the one that the engine cannot read.
    until("an end", async || (bench.status(&lacking).await == 41).then_some(())).await;
    let good = bench.run("true\n").await;
    assert_eq!(bench.finished(&good).await.0, 70);
    assert_eq!((bench.status(&lacking).await, bench.status(&odd).await), (41, 10));
    until("a lost slot again", async || (bench.current_jobs().await == 1).then_some(())).await;
}

#[tokio::test]
async fn what_an_engine_had_when_it_was_killed_is_orphaned() {
    let mut bench = Bench::embedded("orphan").await;
    let id = bench.run(ENDLESS).await;
    let child = bench.file(&id, "child").await;
    bench.engine.stop().await;
    bench.engine = Engine::start(bench.settings.clone(), bench.client.clone()).await.unwrap();
    ends(&child).await;

    // The new engine runs what it is given, and nothing else.
    let other = bench.run("true\n").await;
    assert_eq!(bench.finished(&other).await.0, 70);
    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.names::<Job>().await, [format!("{id}-algorithm-job")]);
    assert!(bench.names::<ConfigMap>().await.contains(&id));
    assert_eq!(bench.pods(&id, "algorithm").await[0]["status"]["phase"], "Running");

    // Somebody who cleans up after it: a claim outlives the pod that uses it.
    let (claims, data) = (bench.api::<PersistentVolumeClaim>(), format!("{id}-data"));
    claims.delete(&data, &DeleteParams::foreground()).await.unwrap();
    assert!(claims.get(&data).await.unwrap().metadata.deletion_timestamp.is_some());
    bench.delete_job(&id, "algorithm").await;
    until("the end of the objects", async || {
        let left = !bench.pods(&id, "algorithm").await.is_empty() || !bench.names::<Job>().await.is_empty();
        (!left && claims.get_opt(&data).await.unwrap().is_none()).then_some(())
    })
    .await;
    assert_eq!(bench.status(&id).await, 40);
}
