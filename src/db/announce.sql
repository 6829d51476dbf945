-- announce() as it is now. Run whenever the schema is brought up to date: the Python service's POST /pgsqlinit replaces it with
-- that service's own, and a migration runs only once. A migration that changes announce() changes it here too; a test compares.

-- The engine calls it every five seconds: it records the engine's announcement and dispatches up to lmt jobs. A job is
-- dispatched once: it leaves status 1 in the statement that returns it, and SKIP LOCKED keeps two engines of one namespace
-- from waiting for, or getting, the same job. A workflow that the engine cannot read ends here: it would cost the engine a
-- thread.
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
