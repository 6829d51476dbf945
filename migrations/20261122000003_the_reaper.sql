-- What the reaper has to know from one run to the next. Every new column has a default; adding them rewrites no row.

SET LOCAL lock_timeout = '10s';

-- First with the default of the rows that are there, then, below, of those to come: nothing is due for the many that
-- finished long ago but to be looked at once, when there is time.
ALTER TABLE jobs
    -- When the status was last changed, by whomever: the engine's own time stamps are not reliable.
    ADD COLUMN IF NOT EXISTS statussince timestamptz NOT NULL DEFAULT now(),
    -- The reaper finished it: an engine that comes back to it changes its status no more.
    ADD COLUMN IF NOT EXISTS closed boolean NOT NULL DEFAULT false,
    -- Whether the WorkFlow object says what the book says.
    ADD COLUMN IF NOT EXISTS mirrored boolean NOT NULL DEFAULT true,
    -- Since when the cluster has held nothing of this running job.
    ADD COLUMN IF NOT EXISTS absentsince timestamptz,
    -- How often an engine was given it and did not begin.
    ADD COLUMN IF NOT EXISTS handbacks smallint NOT NULL DEFAULT 0,
    -- When the reaper may next try something with it; of a finished job, when there is next something to do.
    ADD COLUMN IF NOT EXISTS reapat timestamptz NOT NULL DEFAULT now(),
    -- How often in a row that failed.
    ADD COLUMN IF NOT EXISTS reapfailures smallint NOT NULL DEFAULT 0,
    -- The same for its registration, which nothing else waits for.
    ADD COLUMN IF NOT EXISTS registerat timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN IF NOT EXISTS registerfailures smallint NOT NULL DEFAULT 0,
    -- Of a finished job: what the engine should have removed is removed.
    ADD COLUMN IF NOT EXISTS tidied boolean NOT NULL DEFAULT true,
    -- Its outputs are gone, and their URLs forgotten.
    ADD COLUMN IF NOT EXISTS purged boolean NOT NULL DEFAULT false,
    -- Of a finished job: for how many seconds its outputs are kept, 0 for ever, -1 as the configuration says; null
    -- until its workflow has been read.
    ADD COLUMN IF NOT EXISTS expiry bigint;

ALTER TABLE jobs
    ALTER COLUMN mirrored SET DEFAULT false,
    ALTER COLUMN reapat SET DEFAULT '-infinity',
    ALTER COLUMN tidied SET DEFAULT false;

UPDATE jobs SET mirrored = false, reapat = '-infinity', tidied = false WHERE datefinished IS NULL;

CREATE INDEX IF NOT EXISTS jobs_reap ON jobs (reapat, workflowid) WHERE datefinished IS NOT NULL AND reapat < 'infinity';
CREATE INDEX IF NOT EXISTS jobs_shared_expiry ON jobs (datefinished) WHERE expiry = -1 AND NOT purged;
CREATE INDEX IF NOT EXISTS jobs_unmirrored ON jobs (workflowid) WHERE NOT mirrored;
CREATE INDEX IF NOT EXISTS jobs_namespace ON jobs (namespace);

-- Engines, both services and people change rows; what the reaper has to notice, it notices here.
CREATE OR REPLACE FUNCTION jobs_changed() RETURNS trigger
    LANGUAGE plpgsql AS
$function$
BEGIN
    IF OLD.closed THEN
        -- What is finished stays as it is.
        NEW.status := OLD.status;
        NEW.statustext := OLD.statustext;
        NEW.datefinished := OLD.datefinished;
    END IF;
    IF NEW.status IS DISTINCT FROM OLD.status THEN
        NEW.statussince := clock_timestamp();
        NEW.absentsince := NULL;
    END IF;
    IF (NEW.status, NEW.statustext, NEW.datefinished, NEW.reason)
        IS DISTINCT FROM (OLD.status, OLD.statustext, OLD.datefinished, OLD.reason) THEN
        NEW.mirrored := false;
    END IF;
    IF NEW.outputsurl IS DISTINCT FROM OLD.outputsurl AND OLD.purged AND NEW.purged THEN
        -- Somebody published after all: that has to be removed, too.
        NEW.purged := false;
        NEW.reapat := '-infinity';
    END IF;
    IF (NEW.datefinished IS NOT NULL AND OLD.datefinished IS NULL)
        OR (coalesce(NEW.removed, 0) = 1 AND coalesce(OLD.removed, 0) <> 1 AND NOT NEW.purged)
        OR (NEW.stopreq = 1 AND OLD.stopreq IS DISTINCT FROM 1) THEN
        NEW.reapat := '-infinity';
        NEW.reapfailures := 0;
    END IF;
    RETURN NEW;
END
$function$;

DROP TRIGGER IF EXISTS jobs_changed ON jobs;
CREATE TRIGGER jobs_changed BEFORE UPDATE OF status, statustext, datefinished, reason, outputsurl, removed, stopreq
    ON jobs
    FOR EACH ROW EXECUTE FUNCTION jobs_changed();

-- The end of a log whose pod had to be deleted.
CREATE TABLE IF NOT EXISTS keptlogs (
    workflowid varchar(255) NOT NULL,
    component  text         NOT NULL, -- configure, algorithm, filter or publish
    log        bytea        NOT NULL,
    PRIMARY KEY (workflowid, component)
);

-- One row: who sweeps, until when nobody else may, and when the chores were last done that are not due each time.
CREATE TABLE IF NOT EXISTS sweeps (
    one          boolean     PRIMARY KEY DEFAULT true CHECK (one),
    holder       text,
    helduntil    timestamptz NOT NULL DEFAULT '-infinity',
    nonceschored timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO sweeps DEFAULT VALUES ON CONFLICT DO NOTHING;

-- What the reaper has seen of the environments.
CREATE TABLE IF NOT EXISTS sweptenvs (
    namespace varchar(255) PRIMARY KEY,
    swept     timestamptz  NOT NULL DEFAULT '-infinity', -- when its running jobs were last gone through
    searched  timestamptz  NOT NULL DEFAULT '-infinity', -- when its WorkFlow objects were
    failures  smallint     NOT NULL DEFAULT 0,           -- how often in a row it could not be read
    retryat   timestamptz  NOT NULL DEFAULT '-infinity'
);
