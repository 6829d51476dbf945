-- What this service adds. Every new column has a default, so that the old service's INSERTs and the engine's
-- UPDATEs go on working; adding them rewrites no row.

SET LOCAL lock_timeout = '10s';

ALTER TABLE jobs
    -- True where this service wrote the row: the provider is the signer that it recovered. The old service
    -- recovered signers wrongly, so its rows, those before the migration and those that it may still write,
    -- name an address that nobody owns.
    ADD COLUMN IF NOT EXISTS signerverified boolean NOT NULL DEFAULT false,
    -- False until the job's WorkFlow object is known to be in the cluster.
    ADD COLUMN IF NOT EXISTS registered boolean NOT NULL DEFAULT true,
    -- Seconds since the epoch after which the job is not to be started any more.
    ADD COLUMN IF NOT EXISTS validuntil bigint,
    -- When announce() gave the job to an engine.
    ADD COLUMN IF NOT EXISTS handedout timestamp without time zone,
    -- Why the job was ended, in words its owner understands. The engine writes over statustext.
    ADD COLUMN IF NOT EXISTS reason text;

-- One active job per agreement, decided here under any concurrency. Rows of the old service are left out: it
-- let two unfinished jobs of one agreement in, and goes on to.
CREATE UNIQUE INDEX IF NOT EXISTS jobs_active_agreement ON jobs (agreementid)
    WHERE datefinished IS NULL AND signerverified;

CREATE INDEX IF NOT EXISTS jobs_agreement ON jobs (agreementid, datecreated);
CREATE INDEX IF NOT EXISTS jobs_workflowid ON jobs (workflowid);
CREATE INDEX IF NOT EXISTS jobs_owner ON jobs (owner, datecreated);
CREATE INDEX IF NOT EXISTS jobs_unfinished ON jobs (datecreated, workflowid) WHERE datefinished IS NULL;
CREATE INDEX IF NOT EXISTS jobs_pending ON jobs (namespace, datecreated) WHERE status = 1 AND datefinished IS NULL;
CREATE INDEX IF NOT EXISTS jobs_unregistered ON jobs (datecreated) WHERE NOT registered;

-- A nonce as nanoseconds: callers send clock readings in nanoseconds, microseconds, milliseconds or seconds,
-- told apart by their size. NULL for what is no number: the old service filed all sorts of things.
CREATE OR REPLACE FUNCTION nonce_ns(nonce text) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$
SELECT CASE
           WHEN value >= 1e17 THEN value
           WHEN value >= 1e14 THEN value * 1e3
           WHEN value >= 1e11 THEN value * 1e6
           ELSE value * 1e9
       END
FROM (SELECT CASE
                 WHEN nonce ~ '^[0-9]{1,64}(\.[0-9]{1,64})?([eE][+-]?[0-9]{1,2})?$' THEN nonce::numeric
             END AS value) AS parsed
$$;

-- The nonces that signers have used: a row each, so that requests of one signer do not wait for each other.
-- Those far below the signer's highest are forgotten by the reaper; the highest stays.
CREATE TABLE IF NOT EXISTS usednonces (
    signer text    NOT NULL, -- 0x and 40 lower-case hex digits
    ns     numeric NOT NULL, -- nonce_ns(nonce)
    nonce  text    NOT NULL, -- as it was written
    PRIMARY KEY (signer, ns)
);

-- The old service's nonces count as used. There can be millions, nearly all under addresses that nobody owns:
-- they stay where they are and are looked up by signer.
CREATE INDEX IF NOT EXISTS nonces_signer ON nonces (lower(provider));

-- The highest nonce that a signer has used, and its text; no row for a signer that has used none.
CREATE OR REPLACE FUNCTION highest_nonce(address text) RETURNS TABLE (ns numeric, nonce text)
    LANGUAGE sql STABLE AS
$$
SELECT used.ns, used.nonce
FROM ((SELECT usednonces.ns, usednonces.nonce FROM usednonces WHERE signer = address ORDER BY usednonces.ns DESC LIMIT 1)
      UNION ALL
      (SELECT nonce_ns(nonces.nonce), nonces.nonce FROM nonces WHERE lower(provider) = address)) AS used
WHERE used.ns IS NOT NULL
ORDER BY used.ns DESC
LIMIT 1
$$;

-- Whether a nonce lies further ahead of the clock than the window (in seconds) allows.
CREATE OR REPLACE FUNCTION nonce_is_ahead(attempt text, within float8) RETURNS boolean
    LANGUAGE sql VOLATILE AS
$$
SELECT nonce_ns(attempt) > (extract(epoch FROM clock_timestamp())::numeric + within::numeric) * 1e9
$$;

-- Whether a nonce may still be used by a signer: not ahead of the clock, not far below the signer's highest,
-- and not one of those that the old service filed. That it is not among usednonces is for its primary key to
-- say, at the moment it is taken.
CREATE OR REPLACE FUNCTION nonce_passes(address text, attempt text, within float8) RETURNS boolean
    LANGUAGE sql VOLATILE AS
$$
SELECT NOT nonce_is_ahead(attempt, within)
   AND nonce_ns(attempt) >= coalesce((SELECT ns FROM highest_nonce(address)) - within::numeric * 1e9, 0)
   AND NOT EXISTS (SELECT FROM nonces WHERE lower(provider) = address AND nonce_ns(nonce) = nonce_ns(attempt))
$$;

-- The engine's call, every five seconds: files its announcement and takes up to lmt jobs. A job is handed out
-- once: it leaves status 1 in the statement that returns it, and SKIP LOCKED keeps two engines of one
-- namespace from waiting for, or getting, the same job.
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
            SELECT agreementid, workflowid
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
        ), handed_out AS (
            UPDATE jobs AS job
            SET status = 10, statustext = 'Job started', handedout = now() AT TIME ZONE 'UTC'
            FROM pending
            WHERE job.agreementid = pending.agreementid AND job.workflowid = pending.workflowid
            RETURNING job.workflowid, job.datecreated
        )
        SELECT handed_out.workflowid FROM handed_out ORDER BY handed_out.datecreated;
END
$function$;
