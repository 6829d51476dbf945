//! The order in which an expired job's outputs are deleted: objects, files in buckets, and only then the row.

use serde_json::{Value, json};

use crate::moto::Moto;
use crate::process::{Directory, Env, run, stderr};
use crate::support::{ClosedPort, Cluster, Stored, TestDatabase, unique};

/// A job whose outputs have expired, and what a reaper needs to delete them.
struct Scene {
    database: TestDatabase,
    cluster: Cluster,
    env: Env,
    _kubeconfig: Directory,
}

impl Scene {
    async fn start() -> Self {
        let (database, cluster) = (TestDatabase::migrated().await, Cluster::start().await);
        let directory = Directory::new();
        let kubeconfig = directory.file("kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        let env = Env::of(database.variables())
            .with("KUBECONFIG", kubeconfig.to_str().unwrap())
            .with("STORAGE_EXPIRY", "10")
            .with("OUTPUT_BUCKETS", "outputs,more");
        Self { database, cluster, env, _kubeconfig: directory }
    }

    /// A job that finished long ago, with outputs at these URLs.
    async fn expired(&self, urls: &[&str]) -> Stored {
        let output = |url: &&str| json!({ "filename": "out.txt", "filesize": 5, "type": "output", "url": url });
        let outputs = Value::from(urls.iter().map(output).collect::<Vec<_>>()).to_string();
        let namespace = Some(self.cluster.namespace.clone());
        let job = Stored { outputs: Some(outputs), namespace, finished: Some(1e9), ..Stored::finished() };
        let job = job.insert(&self.database).await;
        self.cluster.engine_objects(&self.cluster.namespace, &job.job_id).await;
        job
    }

    async fn reap(&self, env: &Env) -> Value {
        let output = run(&["reap"], env).await;
        assert!(output.status.success(), "{}", stderr(&output));
        let log = stderr(&output);
        assert!(!log.contains("X-Amz-") && !log.contains("out.txt"), "{log}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn row(&self, job: &Stored) -> Value {
        self.database.job(&job.job_id).await.unwrap()
    }

    /// When a job's outputs are due, and how often they could not be deleted.
    async fn state(&self, job: &Stored) -> (Value, Value) {
        let statement = "SELECT to_jsonb(reaperjobs) FROM reaperjobs WHERE workflowid = $1";
        let state = self.database.row(statement, &job.job_id).await.unwrap();
        (state["expirydue"].clone(), state["failures"].clone())
    }
}

#[tokio::test]
async fn only_files_in_output_buckets_are_deleted_with_the_job() {
    let Some(moto) = Moto::start().await else { return };
    let scene = Scene::start().await;
    for (bucket, key) in [("outputs", "a b/out.txt"), ("more", "out.txt"), ("more", "kept.txt"), ("others", "out.txt")]
    {
        moto.object(bucket, key, b"01234").await;
    }
    let job = scene
        .expired(&[
            "https://outputs.s3.eu-west-1.amazonaws.com/a%20b/out.txt",
            "s3://more/out.txt",
            "https://others.s3.eu-west-1.amazonaws.com/out.txt",
            "https://outputs.example.org/out.txt",
            // Does not exist.
            "https://more.s3.eu-west-1.amazonaws.com/gone.txt",
            "no URL",
        ])
        .await;
    let env = moto.and(scene.env.clone());
    let report = scene.reap(&env).await;
    assert_eq!(report["kinds"]["expiries"], json!({ "found": 1, "done": 1, "failed": 0, "left": 0 }), "{report:#}");
    assert_eq!(moto.content("outputs", "a b/out.txt").await, None);
    assert_eq!(moto.content("more", "out.txt").await, None);
    assert!(moto.content("more", "kept.txt").await.is_some());
    assert!(moto.content("others", "out.txt").await.is_some());
    let row = scene.row(&job).await;
    assert_eq!((&row["removed"], scene.state(&job).await), (&json!(1), (json!("infinity"), json!(0))));
    assert!(!row["outputsurl"].as_str().unwrap().contains("url"), "{row:#}");
    assert_eq!(scene.cluster.objects_of(&scene.cluster.namespace, &job.job_id).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_job_with_a_file_that_cannot_be_deleted_keeps_its_row() {
    let Some(moto) = Moto::start().await else { return };
    let scene = Scene::start().await;
    let key = format!("{}/out.txt", unique("job"));
    moto.object("outputs", &key, b"01234").await;
    let url = format!("https://outputs.s3.eu-west-1.amazonaws.com/{key}");
    let job = scene.expired(&[&url]).await;
    let elsewhere = scene.expired(&["https://example.org/out.txt"]).await;

    let refusing = axum::Router::new().fallback(async || axum::http::StatusCode::FORBIDDEN);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refuses = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, refusing).await.unwrap() });
    let closed = ClosedPort::new();
    let nowhere = format!("http://127.0.0.1:{closed}");
    for (failures, endpoint) in [(1, refuses), (2, nowhere)] {
        let report = scene.reap(&moto.and(scene.env.clone()).with("AWS_ENDPOINT_URL", endpoint)).await;
        assert_eq!(report["kinds"]["expiries"]["failed"], 1, "{report:#}");
        let row = scene.row(&job).await;
        assert_eq!((&row["removed"], &row["outputsurl"]), (&json!(0), &json!(job.outputs)));
        assert_eq!(scene.state(&job).await.1, failures);
        assert!(moto.content("outputs", &key).await.is_some());
        assert_eq!(scene.row(&elsewhere).await["removed"], 1, "others are deleted");
        scene.database.execute("UPDATE reaperjobs SET expirydue = '-infinity' WHERE failures > 0").await;
    }
    let report = scene.reap(&moto.and(scene.env.clone())).await;
    assert_eq!(report["kinds"]["expiries"]["done"], 1, "{report:#}");
    assert_eq!(moto.content("outputs", &key).await, None);
    let row = scene.row(&job).await;
    assert_eq!((&row["removed"], scene.state(&job).await), (&json!(1), (json!("infinity"), json!(0))));
}
