//! What the reaper reads and writes. Whatever changes a job says which state of it was decided on, and changes nothing
//! if it is another by now.
//!
//! Ages are told by the database's clock alone: whoever asks may have another.

use sqlx::Acquire;

use super::{Database, DatabaseError};
use crate::domain::{JobId, SETTLING_SECONDS, Status};

/// An unfinished job, with what decides about it.
#[derive(Debug, Clone)]
pub struct LiveJob {
    /// The job's id; in rows of the old service not necessarily a [`JobId`].
    pub job_id: String,
    /// Where it runs.
    pub namespace: Option<String>,
    /// 0 where the row has none.
    pub status: i32,
    /// For how many seconds it has had this status.
    pub status_age: f64,
    /// 0 none, 1 a stop was asked for, 2 over its time limit.
    pub stop_requested: i16,
    /// Whether it was deleted.
    pub removed: bool,
    /// Whether it has published something.
    pub has_outputs: bool,
    /// In how many seconds it is not valid any more; below 0 if it is past that.
    pub valid_for: Option<f64>,
    /// How many seconds ago an engine was given it.
    pub handed_out_age: f64,
    /// How often an engine was given it and did not begin.
    pub hand_backs: i16,
    /// For how many seconds the cluster has held nothing of it, as far as was looked.
    pub absent_for: Option<f64>,
    /// The document that the engine reads, if something is decided by it: of jobs that no engine has begun, and of those
    /// with no other limit than their own.
    pub workflow: Option<String>,
}

/// A finished job for which there may be something to do.
#[derive(Debug, Clone)]
pub struct FinishedJob {
    /// The job's id; in rows of the old service not necessarily a [`JobId`].
    pub job_id: String,
    /// Where it ran.
    pub namespace: Option<String>,
    /// 0 where the row has none.
    pub status: i32,
    /// How many seconds ago it finished.
    pub age: f64,
    /// Whether it was deleted.
    pub removed: bool,
    /// What the engine should have removed is removed.
    pub tidied: bool,
    /// Its outputs are gone, and their URLs forgotten.
    pub purged: bool,
    /// For how many seconds its outputs are kept, 0 for ever, -1 as the configuration says; `None` if its workflow has
    /// not been read yet.
    pub expiry: Option<i64>,
    /// The document that the engine read, if `expiry` is not known.
    pub workflow: Option<String>,
    /// JSON text: what the job published, with URLs.
    pub outputs: Option<String>,
}

/// A job whose object is not in the cluster yet.
#[derive(Debug, Clone)]
pub struct UnregisteredJob {
    /// The job's id.
    pub job_id: String,
    /// Where it is to run.
    pub namespace: Option<String>,
    /// Whose job it is.
    pub owner: Option<String>,
    /// The agreement that the job serves.
    pub agreement_id: String,
    /// The document that the engine reads.
    pub workflow: Option<String>,
}

/// What a WorkFlow object is to say.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirrored {
    /// The job's id.
    pub job_id: String,
    /// Where it runs.
    pub namespace: Option<String>,
    /// The status code.
    pub status: Option<i32>,
    /// The words for it.
    pub status_text: Option<String>,
    /// Why it was ended, if somebody had to.
    pub reason: Option<String>,
    /// Seconds since the epoch, with 6 decimals.
    pub date_finished: Option<String>,
}

/// An environment, and what is known of it from earlier runs.
#[derive(Debug, Clone)]
pub struct SweptEnvironment {
    /// The namespace.
    pub namespace: String,
    /// The engine's announcement, if there is one.
    pub announcement: Option<String>,
    /// Whether it could not be read of late, and is not to be tried yet.
    pub pausing: bool,
    /// How many seconds ago its WorkFlow objects were gone through.
    pub searched_age: f64,
}

/// What the book says of a name that was found in the cluster.
#[derive(Debug, Clone)]
pub struct Known {
    /// The job's id.
    pub job_id: String,
    /// How many seconds ago it finished; `None` while it is not.
    pub finished_age: Option<f64>,
    /// Whether its engine is done with its objects.
    pub settled: bool,
    /// Whether there is something to do with it anyhow, now or when what failed of late is to be tried again.
    pub due: bool,
}

/// What of a note was not so before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// The reason.
    pub reason: bool,
    /// That the job is over its limit.
    pub timed_out: bool,
}

/// A job's id and the document that its engine read.
pub type Unscheduled = (String, Option<String>);

/// Where a list goes on.
#[derive(Debug, Clone, Default)]
pub struct After(Option<(f64, String)>);

/// What is further away than so many seconds, a thousand years, is not due in any case; intervals have an end.
const FAR: i64 = 1000 * 365 * 24 * 3600;

/// As many rows are read at a time. A workflow may hold 400 KiB.
const PAGE: usize = 100;

impl Database {
    /// Becomes the one that sweeps, for so many seconds; false if somebody else is. The lease is a row that runs out:
    /// whoever holds it may die, and no session is bound to it.
    pub async fn take_sweep(&self, holder: &str, seconds: f64) -> Result<bool, DatabaseError> {
        let changed = self
            .execute(sqlx::query!(
                "UPDATE sweeps SET holder = $1, helduntil = clock_timestamp() + make_interval(secs => $2)
                     WHERE holder = $1 OR helduntil <= clock_timestamp()",
                holder,
                seconds
            ))
            .await?;
        Ok(changed == 1)
    }

    /// Lets others sweep.
    pub async fn leave_sweep(&self, holder: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE sweeps SET holder = NULL, helduntil = '-infinity' WHERE holder = $1",
            holder
        ))
        .await?;
        Ok(())
    }

    /// Every environment that has jobs or was announced, the one first whose turn was longest ago.
    pub async fn swept_environments(&self) -> Result<Vec<SweptEnvironment>, DatabaseError> {
        self.run(async |connection| {
            // The namespaces of millions of rows, in as many steps as there are namespaces.
            Ok(sqlx::query_as!(
                SweptEnvironment,
                r#"
                    WITH RECURSIVE used AS (
                        (SELECT namespace FROM jobs WHERE namespace IS NOT NULL ORDER BY namespace LIMIT 1)
                        UNION ALL
                        SELECT (SELECT jobs.namespace FROM jobs WHERE jobs.namespace > used.namespace
                                ORDER BY jobs.namespace LIMIT 1)
                        FROM used WHERE used.namespace IS NOT NULL
                    ), known AS (
                        SELECT namespace FROM used WHERE namespace IS NOT NULL UNION SELECT namespace FROM envs
                    )
                    SELECT known.namespace AS "namespace!", envs.status AS announcement,
                           coalesce(sweptenvs.retryat > now(), false) AS "pausing!",
                           coalesce(extract(epoch FROM now() - nullif(sweptenvs.searched, '-infinity')), 1e12)::float8
                               AS "searched_age!"
                    FROM known
                    LEFT JOIN envs ON envs.namespace = known.namespace
                    LEFT JOIN sweptenvs ON sweptenvs.namespace = known.namespace
                    ORDER BY sweptenvs.swept NULLS FIRST, known.namespace
                    "#
            )
            .fetch_all(connection)
            .await?)
        })
        .await
    }

    /// Notes that an environment's running jobs were gone through, and if `searched`, its objects.
    pub async fn environment_swept(&self, namespace: &str, searched: bool) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept, searched)
                     VALUES ($1, now(), CASE WHEN $2 THEN now() ELSE '-infinity' END)
                     ON CONFLICT (namespace) DO UPDATE SET swept = now(), failures = 0, retryat = '-infinity',
                         searched = CASE WHEN $2 THEN now() ELSE sweptenvs.searched END",
            namespace,
            searched
        ))
        .await?;
        Ok(())
    }

    /// Notes that an environment has had its turn, though it could not be read.
    pub async fn environment_passed(&self, namespace: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept) VALUES ($1, now())
                     ON CONFLICT (namespace) DO UPDATE SET swept = now()",
            namespace
        ))
        .await?;
        Ok(())
    }

    /// Notes that an environment refused to be read: it is left alone for a while, longer each time.
    pub async fn environment_failed(&self, namespace: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept, failures, retryat)
                     VALUES ($1, now(), 1, now() + make_interval(secs => 10))
                     ON CONFLICT (namespace) DO UPDATE SET swept = now(), failures = least(sweptenvs.failures + 1, 20),
                         retryat = now() + make_interval(secs => least(10 * 2 ^ sweptenvs.failures, 600))",
            namespace
        ))
        .await?;
        Ok(())
    }

    /// The unfinished jobs of a namespace (`None`: of no namespace) that an engine was given or that are not to be
    /// given to one any more, oldest first, a page at a time. `limited` says whether they have a limit apart from what
    /// they say themselves.
    pub async fn live_jobs(
        &self,
        namespace: Option<&str>,
        limited: bool,
        after: &After,
    ) -> Result<(Vec<LiveJob>, Option<After>), DatabaseError> {
        let namespace = namespace.map(str::to_owned);
        let (begin, name) = after.parts();
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                    SELECT workflowid AS job_id, namespace, coalesce(status, 0) AS "status!",
                           extract(epoch FROM clock_timestamp() - statussince)::float8 AS "status_age!",
                           coalesce(stopreq, 0::smallint) AS "stop_requested!",
                           coalesce(removed, 0) = 1 AS "removed!",
                           coalesce(outputsurl, '') NOT IN ('', '[]') AS "has_outputs!",
                           (validuntil - extract(epoch FROM clock_timestamp()))::float8 AS valid_for,
                           coalesce(extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - handedout)::float8,
                                    extract(epoch FROM clock_timestamp() - statussince)::float8) AS "handed_out_age!",
                           handbacks AS "hand_backs!",
                           extract(epoch FROM clock_timestamp() - absentsince)::float8 AS absent_for,
                           CASE WHEN status BETWEEN 10 AND 19 OR NOT $5 AND validuntil IS NULL AND status >= 10
                                THEN workflow END AS workflow,
                           coalesce(extract(epoch FROM datecreated), 0)::float8 AS "created!"
                    FROM jobs
                    WHERE datefinished IS NULL AND namespace IS NOT DISTINCT FROM $1
                      AND reapat <= clock_timestamp()
                      AND (status >= 10
                           OR status = 1 AND (stopreq > 0 OR removed = 1
                                              OR validuntil <= extract(epoch FROM clock_timestamp())))
                      AND (coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid) > ($2, $3)
                    ORDER BY coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid
                    LIMIT $4
                    "#,
                namespace,
                begin,
                name,
                PAGE as i64,
                limited,
            )
            .fetch_all(connection)
            .await?;
            let next = After::of(rows.len(), rows.last().map(|row| (row.created, row.job_id.clone())));
            let jobs = rows.into_iter().map(|row| LiveJob {
                job_id: row.job_id,
                namespace: row.namespace,
                status: row.status,
                status_age: row.status_age,
                stop_requested: row.stop_requested,
                removed: row.removed,
                has_outputs: row.has_outputs,
                valid_for: row.valid_for,
                handed_out_age: row.handed_out_age,
                hand_backs: row.hand_backs,
                absent_for: row.absent_for,
                workflow: row.workflow,
            });
            Ok((jobs.collect(), next))
        })
        .await
    }

    /// Finishes a job that is still in that status, and, if it is given up because it is `absent`, still noted to be so
    /// and has published nothing since; false if it is not.
    pub async fn finish(&self, job: &LiveJob, to: i32, reason: &str, absent: bool) -> Result<bool, DatabaseError> {
        let (job_id, from, has_outputs) = (job.job_id.as_str(), job.status, job.has_outputs);
        // Its words stay where its status does.
        let changed = self
            .execute(sqlx::query!(
                "UPDATE jobs
                     SET datefinished = clock_timestamp() AT TIME ZONE 'UTC', closed = true, status = $3,
                         statustext = CASE WHEN $2::int = $3::int THEN statustext ELSE $4 END,
                         reason = coalesce(reason, $5)
                     WHERE workflowid = $1 AND datefinished IS NULL AND coalesce(status, 0) = $2
                       AND (NOT $6 OR absentsince IS NOT NULL
                                      AND (coalesce(outputsurl, '') NOT IN ('', '[]')) = $7)",
                job_id,
                from,
                to,
                Status::from_code(to).text(),
                reason,
                absent,
                has_outputs
            ))
            .await?;
        Ok(changed > 0)
    }

    /// Lets engines have a job again that one was given at least so many seconds ago; false if it has begun since.
    pub async fn hand_back(&self, job_id: &str, from: i32, seconds: f64) -> Result<bool, DatabaseError> {
        let changed = self
            .execute(sqlx::query!(
                "UPDATE jobs
                     SET status = $2, statustext = $3, handedout = NULL, handbacks = handbacks + 1
                     WHERE workflowid = $1 AND datefinished IS NULL AND status = $4
                       AND coalesce(handedout AT TIME ZONE 'UTC', statussince)
                           <= clock_timestamp() - make_interval(secs => $5)",
                job_id,
                Status::WarmingUp.code(),
                Status::WarmingUp.text(),
                from,
                seconds
            ))
            .await?;
        Ok(changed > 0)
    }

    /// Notes whether the cluster holds something of a running job.
    pub async fn note_absence(&self, job_id: &str, absent: bool) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET absentsince = CASE WHEN $2 THEN coalesce(absentsince, clock_timestamp()) END
                     WHERE workflowid = $1 AND datefinished IS NULL",
            job_id,
            absent
        ))
        .await?;
        Ok(())
    }

    /// Notes why a step of an unfinished job is ended, and if `timed_out`, that it is over its limit. A stop that
    /// was asked for stays one. Says what of that was not so before; `None` if the job is finished.
    pub async fn note_reason(
        &self,
        job_id: &str,
        reason: &str,
        timed_out: bool,
    ) -> Result<Option<Noted>, DatabaseError> {
        let (job_id, reason) = (job_id.to_owned(), reason.to_owned());
        self.run(async |connection| {
            let noted = sqlx::query_as!(
                Noted,
                r#"
                    WITH before AS (
                        SELECT reason, coalesce(stopreq, 0) AS stopreq FROM jobs
                        WHERE workflowid = $1 AND datefinished IS NULL LIMIT 1
                    )
                    UPDATE jobs
                    SET reason = coalesce(reason, $2),
                        stopreq = CASE WHEN NOT $3 OR stopreq = 1 THEN stopreq ELSE 2 END
                    WHERE workflowid = $1 AND datefinished IS NULL
                    RETURNING (SELECT before.reason FROM before) IS NULL AS "reason!",
                              $3 AND (SELECT before.stopreq FROM before) = 0 AS "timed_out!"
                    "#,
                job_id,
                reason,
                timed_out
            )
            .fetch_optional(connection)
            .await?;
            Ok(noted)
        })
        .await
    }

    /// Takes back what was noted: the step went on after all. Nothing happens if another holds the sweep by now: a statement of
    /// one that was killed may arrive late.
    pub async fn withdraw_reason(
        &self,
        job_id: &str,
        reason: &str,
        noted: Noted,
        holder: &str,
    ) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs
                     SET reason = CASE WHEN $4 THEN NULL ELSE reason END,
                         stopreq = CASE WHEN $5 AND stopreq = 2 THEN 0 ELSE stopreq END
                     WHERE workflowid = $1 AND datefinished IS NULL AND reason = $2
                       AND EXISTS (SELECT FROM sweeps WHERE holder = $3)",
            job_id,
            reason,
            holder,
            noted.reason,
            noted.timed_out
        ))
        .await?;
        Ok(())
    }

    /// Notes that something with a job failed: it is left alone for a while, longer each time, at most for ten minutes,
    /// or an hour if it is finished. Of a finished one, everything is removed again then.
    pub async fn job_failed(&self, job_id: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET reapfailures = least(reapfailures + 1, 20), tidied = tidied AND datefinished IS NULL,
                         reapat = clock_timestamp() + make_interval(secs => least(10 * 2 ^ reapfailures,
                             CASE WHEN datefinished IS NULL THEN 600 ELSE 3600 END))
                     WHERE workflowid = $1",
            job_id
        ))
        .await?;
        Ok(())
    }

    /// As [`Database::job_failed`], of a job's registration, which keeps nothing else waiting.
    pub async fn registration_failed(&self, job_id: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET registerfailures = least(registerfailures + 1, 20),
                         registerat = clock_timestamp() + make_interval(secs => least(10 * 2 ^ registerfailures, 600))
                     WHERE workflowid = $1",
            job_id
        ))
        .await?;
        Ok(())
    }

    /// Notes that what failed with an unfinished job has worked.
    pub async fn job_worked(&self, job_id: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET reapfailures = 0, reapat = '-infinity'
                     WHERE workflowid = $1 AND reapfailures > 0 AND datefinished IS NULL",
            job_id
        ))
        .await?;
        Ok(())
    }

    /// The unfinished jobs whose objects are not in the cluster yet, unless they are not to be started any more: an object
    /// is what lets the engines of 2019 and 2020 start a job. Oldest first, a page at a time.
    pub async fn unregistered_jobs(
        &self,
        after: &After,
    ) -> Result<(Vec<UnregisteredJob>, Option<After>), DatabaseError> {
        let (begin, name) = after.parts();
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                    SELECT workflowid AS job_id, namespace, owner, agreementid AS agreement_id, workflow,
                           coalesce(extract(epoch FROM datecreated), 0)::float8 AS "created!"
                    FROM jobs
                    WHERE NOT registered AND datefinished IS NULL AND registerat <= clock_timestamp()
                      AND (status <> 1 OR coalesce(stopreq, 0) = 0 AND coalesce(removed, 0) = 0
                                          AND coalesce(validuntil > extract(epoch FROM clock_timestamp()), true))
                      AND (coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid) > ($1, $2)
                    ORDER BY coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid
                    LIMIT 20
                    "#,
                begin,
                name,
            )
            .fetch_all(connection)
            .await?;
            let last = rows.last().map(|row| (row.created, row.job_id.clone()));
            let jobs = rows.into_iter().map(|row| UnregisteredJob {
                job_id: row.job_id,
                namespace: row.namespace,
                owner: row.owner,
                agreement_id: row.agreement_id,
                workflow: row.workflow,
            });
            Ok((jobs.collect(), last.map(|last| After(Some(last)))))
        })
        .await
    }

    /// For how many seconds the job has waited that has waited longest for its registration; 0 if none does.
    pub async fn oldest_unregistered(&self) -> Result<f64, DatabaseError> {
        self.run(async |connection| {
                Ok(sqlx::query_scalar!(
                    r#"
                    SELECT coalesce(extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - min(datecreated)), 0)::float8
                        AS "age!"
                    FROM jobs WHERE NOT registered AND datefinished IS NULL
                    "#
                )
                .fetch_one(connection)
                .await?)
        })
        .await
    }

    /// The jobs whose objects do not say what the book says, by name, a page at a time. Those not registered have theirs
    /// made first; unless they are finished, when there may be one all the same: whoever made it died before it said so.
    pub async fn unmirrored_jobs(&self, after: &str, until: Option<&str>) -> Result<Vec<Mirrored>, DatabaseError> {
        let (after, until) = (after.to_owned(), until.map(str::to_owned));
        self.run(async |connection| {
            Ok(sqlx::query_as!(
                Mirrored,
                r#"
                    SELECT workflowid AS job_id, namespace, status, statustext AS status_text, reason,
                           to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') AS date_finished
                    FROM jobs
                    WHERE NOT mirrored AND (registered OR datefinished IS NOT NULL) AND workflowid > $1
                      AND ($3::text IS NULL OR workflowid <= $3)
                    ORDER BY workflowid LIMIT $2
                    "#,
                after,
                PAGE as i64,
                until
            )
            .fetch_all(connection)
            .await?)
        })
        .await
    }

    /// Notes that a job's object says what was read, unless the book says something else by now.
    pub async fn mirrored(&self, said: Mirrored) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET mirrored = true
                     WHERE workflowid = $1 AND status IS NOT DISTINCT FROM $2 AND statustext IS NOT DISTINCT FROM $3
                       AND reason IS NOT DISTINCT FROM $4
                       AND to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') IS NOT DISTINCT FROM $5",
            said.job_id,
            said.status,
            said.status_text,
            said.reason,
            said.date_finished
        ))
        .await?;
        Ok(())
    }

    /// Finished jobs whose workflow has not been read for how long their outputs are kept, a page at a time: id and
    /// document.
    pub async fn unscheduled_jobs(&self, after: &After) -> Result<(Vec<Unscheduled>, Option<After>), DatabaseError> {
        let (begin, name) = after.parts();
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"SELECT workflowid, workflow, extract(epoch FROM reapat)::float8 AS "place!" FROM jobs
                       WHERE datefinished IS NOT NULL AND reapat < 'infinity' AND reapat <= now()
                         AND expiry IS NULL AND (reapat, workflowid) > (to_timestamp($2), $3)
                       ORDER BY reapat, workflowid LIMIT $1"#,
                PAGE as i64,
                begin,
                name
            )
            .fetch_all(connection)
            .await?;
            let next = After::of(rows.len(), rows.last().map(|row| (row.place, row.workflowid.clone())));
            Ok((rows.into_iter().map(|row| (row.workflowid, row.workflow)).collect(), next))
        })
        .await
    }

    /// Notes for how long the outputs of jobs are kept (see [`FinishedJob::expiry`]). Those with nothing else to do are
    /// not looked at again.
    pub async fn schedule(&self, expiries: Vec<(String, i64)>) -> Result<(), DatabaseError> {
        let (job_ids, seconds): (Vec<String>, Vec<i64>) = expiries.into_iter().unzip();
        self.execute(sqlx::query!(
            "UPDATE jobs
                     SET expiry = read.expiry,
                         reapat = CASE WHEN tidied AND read.expiry <= 0 AND coalesce(removed, 0) <> 1 THEN 'infinity'
                                       ELSE reapat END
                     FROM unnest($1::text[], $2::bigint[]) AS read (workflowid, expiry)
                     WHERE jobs.workflowid = read.workflowid AND jobs.datefinished IS NOT NULL",
            &job_ids,
            &seconds
        ))
        .await?;
        Ok(())
    }

    /// The finished jobs with something to do, those first that have waited longest, a page at a time: those whose
    /// time has come, and those that nothing but the configuration's `shared_expiry` seconds lets expire. Those whose
    /// workflow has not been read yet are left out, unless `unscheduled_too`.
    pub async fn due_jobs(
        &self,
        shared_expiry: Option<i64>,
        unscheduled_too: bool,
        after: &After,
    ) -> Result<(Vec<FinishedJob>, Option<After>), DatabaseError> {
        let (begin, name) = after.parts();
        let shared_expiry = shared_expiry.map(|seconds| seconds.min(FAR));
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                    SELECT workflowid AS "job_id!", namespace, coalesce(status, 0) AS "status!",
                           extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8 AS "age!",
                           coalesce(removed, 0) = 1 AS "removed!", tidied AS "tidied!", purged AS "purged!",
                           expiry, CASE WHEN expiry IS NULL THEN workflow END AS workflow, outputsurl AS outputs,
                           place AS "place!"
                    FROM (
                        (SELECT *, extract(epoch FROM reapat)::float8 AS place FROM jobs
                         WHERE datefinished IS NOT NULL AND reapat < 'infinity' AND reapat <= now()
                           AND (expiry IS NOT NULL OR $5) AND (reapat, workflowid) > (to_timestamp($1), $2)
                         ORDER BY reapat, workflowid LIMIT $3)
                        UNION ALL
                        (SELECT *, extract(epoch FROM datefinished)::float8 AS place FROM jobs
                         WHERE expiry = -1 AND NOT purged AND reapat = 'infinity'
                           AND datefinished <= now() AT TIME ZONE 'UTC' - make_interval(secs => $4::bigint)
                           AND datefinished >= to_timestamp($1) AT TIME ZONE 'UTC'
                           AND (extract(epoch FROM datefinished)::float8, workflowid) > ($1, $2)
                         ORDER BY datefinished, workflowid LIMIT $3)
                    ) AS due
                    ORDER BY place, workflowid LIMIT $3
                    "#,
                begin,
                name,
                PAGE as i64,
                shared_expiry,
                unscheduled_too,
            )
            .fetch_all(connection)
            .await?;
            let next = After::of(rows.len(), rows.last().map(|row| (row.place, row.job_id.clone())));
            let jobs = rows.into_iter().map(|row| FinishedJob {
                job_id: row.job_id,
                namespace: row.namespace,
                status: row.status,
                age: row.age,
                removed: row.removed,
                tidied: row.tidied,
                purged: row.purged,
                expiry: row.expiry,
                workflow: row.workflow,
                outputs: row.outputs,
            });
            Ok((jobs.collect(), next))
        })
        .await
    }

    /// Notes that what the engine left of a finished job is gone.
    pub async fn tidied(&self, job_id: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET tidied = true WHERE workflowid = $1 AND datefinished IS NOT NULL",
            job_id
        ))
        .await?;
        Ok(())
    }

    /// Marks a finished job as removed and forgets where its outputs were, if they are still those that were read, and
    /// the logs that were kept of it; false if they are not. `without_urls` is what stays of the outputs.
    pub async fn purged(
        &self,
        job_id: &str,
        read: Option<String>,
        without_urls: Option<String>,
    ) -> Result<bool, DatabaseError> {
        let job_id = job_id.to_owned();
        self.run(async |connection| {
            let mut transaction = connection.begin().await?;
            let done = sqlx::query!(
                "UPDATE jobs SET removed = 1, purged = true, tidied = true, outputsurl = $3, configlogurl = NULL,
                         publishlogurl = NULL, algologurl = NULL
                     WHERE workflowid = $1 AND datefinished IS NOT NULL AND outputsurl IS NOT DISTINCT FROM $2",
                job_id,
                read,
                without_urls
            )
            .execute(&mut *transaction)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            sqlx::query!("DELETE FROM keptlogs WHERE workflowid = $1", job_id).execute(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Notes in how many seconds there is next something to do with a finished job; `None` for never. If somebody
    /// deleted it meanwhile, or published something, that is now; unless `removal_waits`, because its engine is not done.
    pub async fn look_again(
        &self,
        job_id: &str,
        seconds: Option<f64>,
        removal_waits: bool,
    ) -> Result<(), DatabaseError> {
        let seconds = seconds.map(|seconds| seconds.min(FAR as f64));
        self.execute(sqlx::query!(
            "UPDATE jobs SET reapfailures = 0,
                         reapat = coalesce(clock_timestamp() + make_interval(secs => $2), 'infinity')
                     WHERE workflowid = $1 AND datefinished IS NOT NULL
                       AND (purged OR coalesce(removed, 0) <> 1 OR $3)",
            job_id,
            seconds,
            removal_waits
        ))
        .await?;
        Ok(())
    }

    /// Those of some names that are in the book.
    pub async fn known(&self, names: Vec<String>) -> Result<Vec<Known>, DatabaseError> {
        self.run(async |connection| {
                Ok(sqlx::query_as!(
                    Known,
                    r#"
                    SELECT workflowid AS job_id,
                           extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8 AS finished_age,
                           coalesce(status IN (31, 32, 70)
                                    OR datefinished < clock_timestamp() AT TIME ZONE 'UTC'
                                                      - make_interval(secs => $2::bigint), false) AS "settled!",
                           reapfailures > 0 OR reapat <= clock_timestamp() AS "due!"
                    FROM jobs WHERE workflowid = ANY($1)
                    "#,
                    &names,
                    SETTLING_SECONDS
                )
                .fetch_all(connection)
                .await?)
        })
        .await
    }

    /// Keeps the end of a step's log. What was kept of an earlier pod is replaced.
    pub async fn keep_log(&self, job_id: &JobId, component: &str, log: Vec<u8>) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO keptlogs (workflowid, component, log) VALUES ($1, $2, $3)
                     ON CONFLICT (workflowid, component) DO UPDATE SET log = EXCLUDED.log",
            job_id.as_str(),
            component,
            log
        ))
        .await?;
        Ok(())
    }

    /// The end of a step's log that was kept, if there is one.
    pub async fn kept_log(&self, job_id: &JobId, component: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
        let (job_id, component) = (job_id.to_string(), component.to_owned());
        self.run(async |connection| {
            Ok(sqlx::query_scalar!(
                "SELECT log FROM keptlogs WHERE workflowid = $1 AND component = $2",
                job_id,
                component
            )
            .fetch_optional(connection)
            .await?)
        })
        .await
    }

    /// Whether it is time to forget nonces: the last time was at least so many seconds ago.
    pub async fn nonces_due(&self, seconds: f64) -> Result<bool, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_scalar!(
                r#"SELECT EXISTS (SELECT FROM sweeps
                                      WHERE nonceschored <= now() - make_interval(secs => $1)) AS "due!""#,
                seconds
            )
            .fetch_one(connection)
            .await?)
        })
        .await
    }

    /// Forgets nonces that lie more than so many seconds below their signer's highest, of some signers at a time, by
    /// address, beginning after one. Says how many, and the last signer; `None` after the last. With `dry`, they are
    /// counted only.
    pub async fn forget_nonces(
        &self,
        margin: f64,
        after: &str,
        dry: bool,
    ) -> Result<(u64, Option<String>), DatabaseError> {
        let after = after.to_owned();
        self.run(async |connection| {
            let row = sqlx::query!(
                r#"
                    WITH RECURSIVE signers AS (
                        (SELECT signer, 1 AS number FROM usednonces WHERE signer > $3 ORDER BY signer LIMIT 1)
                        UNION ALL
                        SELECT (SELECT used.signer FROM usednonces AS used WHERE used.signer > signers.signer
                                ORDER BY used.signer LIMIT 1), number + 1
                        FROM signers WHERE signers.signer IS NOT NULL AND number < 2000
                    ), old AS (
                        SELECT used.signer, used.ns
                        FROM signers
                        CROSS JOIN LATERAL (
                            SELECT signer, ns FROM usednonces
                            WHERE usednonces.signer = signers.signer
                              AND ns < (SELECT max(highest.ns) FROM usednonces AS highest
                                        WHERE highest.signer = signers.signer) - $1::float8::numeric * 1e9
                            LIMIT 5000
                        ) AS used
                        LIMIT 10000
                    ), gone AS (
                        DELETE FROM usednonces USING old
                        WHERE NOT $2 AND usednonces.signer = old.signer AND usednonces.ns = old.ns
                    )
                    SELECT (SELECT count(*) FROM old) AS "old!", (SELECT max(signer) FROM signers) AS last
                    "#,
                margin,
                dry,
                after
            )
            .fetch_one(connection)
            .await?;
            Ok((row.old as u64, row.last))
        })
        .await
    }

    /// Notes that all nonces that could be forgotten are.
    pub async fn nonces_forgotten(&self) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!("UPDATE sweeps SET nonceschored = now()")).await?;
        Ok(())
    }
}

impl After {
    fn parts(&self) -> (f64, String) {
        self.0.clone().unwrap_or((f64::NEG_INFINITY, String::new()))
    }

    /// Where to go on after a page of so many rows, unless it was the last.
    fn of(rows: usize, last: Option<(f64, String)>) -> Option<Self> {
        last.filter(|_| rows == PAGE).map(|last| Self(Some(last)))
    }
}
