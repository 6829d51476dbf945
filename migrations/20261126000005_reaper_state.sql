-- The reaper's state of a job in a table of its own, beside the one that the engine and the Python service use, and what the
-- reaper has to know of engines.

SET LOCAL lock_timeout = '10s';

ALTER TABLE envs
    -- When the engine last announced the environment. `lastping` is in the time zone of its session.
    ADD COLUMN IF NOT EXISTS announcedat timestamptz NOT NULL DEFAULT now(),
    -- When it last announced that it has no jobs: it has no thread for a job that was dispatched before.
    ADD COLUMN IF NOT EXISTS idleat timestamptz;

CREATE TABLE IF NOT EXISTS reaperjobs (
    workflowid       varchar(255) PRIMARY KEY,
    -- What the last sweep saw of the unfinished job, if no step of it was in progress: `absent`, `idle`, or the uid of the
    -- Kubernetes Job that is in trouble (src/reaper/unfinished.rs).
    seen             text,
    -- Since when: the last change of the job's status or of `seen`.
    seensince        timestamptz  NOT NULL DEFAULT clock_timestamp(),
    -- How often it was dispatched, not begun, and requeued.
    requeues         smallint     NOT NULL DEFAULT 0,
    -- The reaper finished it: its end is no longer changed.
    closed           boolean      NOT NULL DEFAULT false,
    -- When its WorkFlow object is to be created or brought up to date; infinity: it is up to date.
    objectdue        timestamptz  NOT NULL DEFAULT 'infinity',
    -- When its outputs and their URLs are to be deleted; infinity: never, or they are deleted.
    expirydue        timestamptz  NOT NULL DEFAULT 'infinity',
    -- The STORAGE_EXPIRY (seconds, 0 for ever) that expirydue was computed with, -1 if it has not been computed yet; NULL if
    -- it does not depend on it.
    configuredexpiry bigint,
    -- How often in a row its object could not be brought up to date, or its outputs could not be deleted.
    failures         smallint     NOT NULL DEFAULT 0
);

CREATE INDEX IF NOT EXISTS reaperjobs_object ON reaperjobs (objectdue, workflowid) WHERE objectdue < 'infinity';
CREATE INDEX IF NOT EXISTS reaperjobs_expiry ON reaperjobs (expirydue, workflowid) WHERE expirydue < 'infinity';
CREATE INDEX IF NOT EXISTS reaperjobs_configured ON reaperjobs (configuredexpiry) WHERE configuredexpiry IS NOT NULL;

-- The jobs that the reaper decides on, by namespace; and those that wait and may not be dispatched any more.
CREATE INDEX IF NOT EXISTS jobs_dispatched ON jobs (namespace, workflowid)
    WHERE datefinished IS NULL AND status >= 10;
CREATE INDEX IF NOT EXISTS jobs_called_off ON jobs (workflowid)
    WHERE datefinished IS NULL AND status = 1 AND (coalesce(stopreq, 0) <> 0 OR coalesce(removed, 0) <> 0);
CREATE INDEX IF NOT EXISTS jobs_without_object ON jobs (datecreated) WHERE NOT registered AND datefinished IS NULL;
CREATE INDEX IF NOT EXISTS jobs_valid_until ON jobs (validuntil) WHERE datefinished IS NULL AND status = 1;

-- Whether a job has finished and its engine is done with its objects: with these states at once, with any other an hour
-- after its end (docs/contract/engine.md, "Finished jobs").
CREATE OR REPLACE FUNCTION is_settled(status int, finished timestamp) RETURNS boolean
    LANGUAGE sql STABLE AS
$$
SELECT coalesce(finished IS NOT NULL
                AND (status IN (31, 32, 70) OR finished <= now() AT TIME ZONE 'UTC' - interval '1 hour'), false)
$$;

-- A stored workflow as JSON. NUL, which text cannot hold, becomes U+FFFD. Pairs of backslashes are replaced first: `\\u0000`
-- is no NUL.
CREATE OR REPLACE FUNCTION stored_json(document text) RETURNS json
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
SELECT CASE WHEN strpos(document, '\u0000') > 0
            THEN replace(replace(document, '\\', '\u005c'), '\u0000', '\ufffd')
            ELSE document END::json
$$;

-- For how many seconds a job's outputs are kept by its own workflow: 0 for ever; NULL if it does not say, or cannot be read.
CREATE OR REPLACE FUNCTION workflow_expiry(document text) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$function$
DECLARE
    expiry  json;
    seconds numeric;
BEGIN
    expiry := stored_json(document) #> '{spec,metadata,stages,0,compute,storageExpiry}';
    IF json_typeof(expiry) IN ('number', 'string') THEN
        seconds := trunc(btrim(expiry #>> '{}')::numeric);
        -- At most a thousand years: more would exceed the range of timestamps.
        RETURN CASE WHEN seconds IN ('NaN', 'Infinity', '-Infinity') THEN NULL
                    ELSE least(greatest(seconds, 0), 31536000000) END;
    END IF;
    RETURN NULL;
EXCEPTION
    WHEN OTHERS THEN
        RETURN NULL;
END
$function$;

-- When a finished job's outputs are to be deleted, and by which STORAGE_EXPIRY (see reaperjobs).
CREATE OR REPLACE FUNCTION outputs_expire(finished timestamp, removed smallint, document text,
                                          OUT due timestamptz, OUT configured bigint)
    LANGUAGE plpgsql STABLE AS
$function$
DECLARE
    own bigint;
BEGIN
    IF removed = 1 THEN
        due := '-infinity';
        RETURN;
    END IF;
    own := workflow_expiry(document);
    configured := CASE WHEN own IS NULL THEN -1 END;
    due := CASE WHEN own > 0 THEN finished AT TIME ZONE 'UTC' + make_interval(secs => own) ELSE 'infinity' END;
END
$function$;

-- Whether the engine can read a workflow: it has every key that the engine reads, without which a thread of the engine dies
-- and is counted for ever (docs/contract/engine.md, "jobs.workflow").
CREATE OR REPLACE FUNCTION workflow_is_readable(document text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$function$
DECLARE
    workflow  json;
    metadata  json;
    stage     json;
    container json;
BEGIN
    workflow := stored_json(document);
    metadata := workflow -> 'metadata';
    stage := workflow -> 'spec' -> 'metadata' -> 'stages' -> 0;
    container := stage -> 'algorithm' -> 'container';
    RETURN coalesce(
        json_typeof(metadata -> 'name') = 'string'
        AND json_typeof(metadata -> 'labels' -> 'workflow') = 'string'
        AND json_typeof(metadata -> 'secret') = 'string'
        AND json_typeof(stage -> 'compute') = 'object'
        AND json_typeof(stage -> 'algorithm' -> 'id') = 'string'
        AND json_typeof(container -> 'entrypoint') = 'string'
        AND container -> 'image' IS NOT NULL
        AND (container -> 'tag' IS NOT NULL OR container ->> 'checksum' LIKE 'sha256:%')
        AND json_typeof(stage -> 'input') = 'array'
        AND NOT EXISTS (SELECT FROM json_array_elements(stage -> 'input') AS input
                        WHERE json_typeof(input -> 'id') IS DISTINCT FROM 'string'),
        false);
EXCEPTION
    WHEN OTHERS THEN
        RETURN false;
END
$function$;

-- Existing jobs. Finished ones that no version of this service has visited yet are recorded later, in batches
-- (src/db/summaries.rs).
INSERT INTO reaperjobs (workflowid, seensince, requeues, objectdue)
SELECT workflowid, statussince, handbacks, clock_timestamp() FROM jobs WHERE datefinished IS NULL
ON CONFLICT DO NOTHING;

DO $$
DECLARE
    visited boolean := false;
BEGIN
    IF to_regclass('_sqlx_migrations') IS NOT NULL THEN
        -- Before this transaction.
        SELECT count(*) > 0 INTO visited FROM _sqlx_migrations WHERE version = 20261125000004 AND installed_on < now();
    END IF;
    IF visited THEN
        INSERT INTO reaperjobs (workflowid, closed, objectdue, expirydue, configuredexpiry)
        SELECT workflowid, closed, CASE WHEN mirrored THEN 'infinity' ELSE clock_timestamp() END,
               CASE WHEN purged THEN 'infinity' ELSE expire.due END, CASE WHEN NOT purged THEN expire.configured END
        FROM jobs CROSS JOIN LATERAL outputs_expire(datefinished, removed, workflow) AS expire
        WHERE datefinished IS NOT NULL AND algodid IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

DROP TRIGGER IF EXISTS jobs_changed ON jobs;
DROP INDEX IF EXISTS jobs_unregistered;

ALTER TABLE jobs
    DROP COLUMN IF EXISTS statussince,
    DROP COLUMN IF EXISTS closed,
    DROP COLUMN IF EXISTS mirrored,
    DROP COLUMN IF EXISTS absentsince,
    DROP COLUMN IF EXISTS handbacks,
    DROP COLUMN IF EXISTS reapat,
    DROP COLUMN IF EXISTS reapfailures,
    DROP COLUMN IF EXISTS registerat,
    DROP COLUMN IF EXISTS registerfailures,
    DROP COLUMN IF EXISTS tidied,
    DROP COLUMN IF EXISTS purged,
    DROP COLUMN IF EXISTS expiry;

ALTER TABLE jobs RENAME COLUMN handedout TO dispatchedat;
ALTER TABLE sweeps RENAME COLUMN nonceschored TO noncespruned;
ALTER TABLE sweptenvs RENAME COLUMN searched TO scanned;
ALTER TABLE sweptenvs
    DROP COLUMN failures,
    DROP COLUMN retryat;

-- The engine, both services and people change rows; what the reaper has to notice is recorded here. With the rights of its
-- owner: who changes a job needs none on the reaper's table.
CREATE OR REPLACE FUNCTION jobs_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS
$function$
DECLARE
    new_status boolean;
    new_object boolean;
    finished   boolean := OLD.datefinished IS NOT NULL;
    closed     boolean;
    recorded   boolean;
    due        timestamptz;
    configured bigint;
BEGIN
    IF finished THEN
        SELECT state.closed INTO closed FROM reaperjobs AS state WHERE state.workflowid = OLD.workflowid;
        recorded := FOUND;
        IF closed THEN
            NEW.status := OLD.status;
            NEW.statustext := OLD.statustext;
            NEW.datefinished := OLD.datefinished;
        END IF;
    ELSIF NEW.datefinished IS NOT NULL THEN
        -- The time zone of the session that wrote it is not known.
        NEW.datefinished := clock_timestamp() AT TIME ZONE 'UTC';
    END IF;
    new_status := NEW.status IS DISTINCT FROM OLD.status;
    new_object := (NEW.status, NEW.statustext, NEW.datefinished, NEW.reason)
        IS DISTINCT FROM (OLD.status, OLD.statustext, OLD.datefinished, OLD.reason);
    IF NEW.datefinished IS NOT NULL
        AND (NOT finished OR NOT recorded
             OR NEW.removed = 1 AND (NEW.removed, NEW.outputsurl) IS DISTINCT FROM (OLD.removed, OLD.outputsurl)) THEN
        SELECT expire.due, expire.configured INTO due, configured
        FROM outputs_expire(NEW.datefinished, NEW.removed, NEW.workflow) AS expire;
    END IF;
    IF new_object OR due IS NOT NULL THEN
        INSERT INTO reaperjobs AS state (workflowid, objectdue, expirydue, configuredexpiry)
        VALUES (NEW.workflowid, CASE WHEN new_object THEN clock_timestamp() ELSE 'infinity' END,
                coalesce(due, 'infinity'), configured)
        ON CONFLICT (workflowid) DO UPDATE
        SET seen = CASE WHEN NOT new_status THEN state.seen END,
            seensince = CASE WHEN new_status THEN clock_timestamp() ELSE state.seensince END,
            requeues = state.requeues + CASE WHEN NEW.status = 1 AND OLD.status BETWEEN 10 AND 19 THEN 1 ELSE 0 END,
            objectdue = CASE WHEN new_object THEN clock_timestamp() ELSE state.objectdue END,
            expirydue = coalesce(due, state.expirydue),
            configuredexpiry = CASE WHEN due IS NULL THEN state.configuredexpiry ELSE configured END,
            failures = 0;
    END IF;
    RETURN NEW;
END
$function$;

CREATE TRIGGER jobs_changed BEFORE UPDATE OF status, statustext, datefinished, reason, outputsurl, removed ON jobs
    FOR EACH ROW EXECUTE FUNCTION jobs_changed();

CREATE OR REPLACE FUNCTION jobs_recorded() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS
$function$
DECLARE
    due        timestamptz := 'infinity';
    configured bigint;
BEGIN
    IF NEW.datefinished IS NOT NULL THEN
        SELECT expire.due, expire.configured INTO due, configured
        FROM outputs_expire(NEW.datefinished, NEW.removed, NEW.workflow) AS expire;
    END IF;
    INSERT INTO reaperjobs (workflowid, objectdue, expirydue, configuredexpiry)
    VALUES (NEW.workflowid, clock_timestamp(), due, configured)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$function$;

DROP TRIGGER IF EXISTS jobs_recorded ON jobs;
CREATE TRIGGER jobs_recorded AFTER INSERT ON jobs
    FOR EACH ROW EXECUTE FUNCTION jobs_recorded();

-- Whether an engine announces that it has no jobs.
CREATE OR REPLACE FUNCTION announces_no_jobs(announcement text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$function$
BEGIN
    RETURN coalesce((announcement::json ->> 'currentJobs')::numeric = 0, false);
EXCEPTION
    WHEN OTHERS THEN
        RETURN false;
END
$function$;

-- A trigger: the Python service's POST /pgsqlinit replaces announce() with its own.
CREATE OR REPLACE FUNCTION envs_announced() RETURNS trigger
    LANGUAGE plpgsql AS
$function$
BEGIN
    -- The time of the transaction: a job that is dispatched in it gets the same, and is not older.
    NEW.announcedat := now();
    IF announces_no_jobs(NEW.status) THEN
        NEW.idleat := now();
    END IF;
    RETURN NEW;
END
$function$;

DROP TRIGGER IF EXISTS envs_announced ON envs;
CREATE TRIGGER envs_announced BEFORE INSERT OR UPDATE OF status, lastping ON envs
    FOR EACH ROW EXECUTE FUNCTION envs_announced();

-- The engine's call, as in migration 2. A workflow that the engine cannot read ends here: it would cost the engine a thread.
CREATE OR REPLACE FUNCTION announce(environment varchar(255), fullstatus text, lmt int)
    RETURNS TABLE (workflow varchar(255))
    LANGUAGE plpgsql AS
$function$
#variable_conflict use_column
BEGIN
    INSERT INTO envs (namespace, status, lastping)
    VALUES (environment, fullstatus, now())
    ON CONFLICT (namespace) DO UPDATE SET status = EXCLUDED.status, lastping = EXCLUDED.lastping;

    RETURN QUERY
        WITH pending AS (
            SELECT agreementid, workflowid, workflow_is_readable(workflow) AS readable
            FROM jobs
            WHERE namespace = environment
              AND status = 1
              AND datefinished IS NULL
              AND coalesce(stopreq, 0) = 0
              AND coalesce(removed, 0) = 0
              AND (validuntil IS NULL OR validuntil > extract(epoch FROM now()))
            ORDER BY datecreated
            LIMIT greatest(lmt, 0)
            FOR UPDATE SKIP LOCKED
        ), unreadable AS (
            UPDATE jobs AS job
            SET status = 41, statustext = 'Algorithm failed', datefinished = now() AT TIME ZONE 'UTC',
                reason = 'The job could not be started: its workflow cannot be read.'
            FROM pending
            WHERE job.agreementid = pending.agreementid AND job.workflowid = pending.workflowid AND NOT pending.readable
        ), dispatched AS (
            UPDATE jobs AS job
            SET status = 10, statustext = 'Job started', dispatchedat = now() AT TIME ZONE 'UTC'
            FROM pending
            WHERE job.agreementid = pending.agreementid AND job.workflowid = pending.workflowid AND pending.readable
            RETURNING job.workflowid, job.datecreated
        )
        SELECT dispatched.workflowid FROM dispatched ORDER BY dispatched.datecreated;
END
$function$;
