-- The roles of the functions and of the engine, each with the grants that its own statements need and no other. The tables
-- belong to the role that runs this, which only `migrate` logs in with.
--
-- `migrate` runs this file each time it has brought the schema up to date, if POSTGRES_ROLES is set, and with that prefix. By
-- hand, as the owner of the tables:
--
--   psql "host=… dbname=… user=… sslmode=verify-full sslrootcert=…" --single-transaction -f infra/database/roles.sql
--
-- It may be run any number of times. A role can log in once it has a password (psql: \password operator_engine).
-- Before PostgreSQL 15 every role may also create tables in the schema `public`, unless its owner revokes that.
--
-- tests/reaper/rights.rs runs what each role is for with these grants, and then without each of them.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{operator_compute, operator_results, operator_environments, operator_admin, operator_reaper,
                            operator_engine}'::text[] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
        -- An earlier version of this file may have granted more. What is revoked from a table is revoked from its columns.
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I', name);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', name);
    END LOOP;
END
$$;

-- compute: starts, lists, stops and deletes jobs. It writes workflows, and cannot read them.
GRANT INSERT (agreementid, workflowid, owner, status, statustext, datecreated, laststatusupdate, workflow, namespace, provider,
              chainid, validuntil, algodid, inputdids, workflowchain, signerverified, registered),
      SELECT (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, outputsurl, namespace, stopreq,
              removed, provider, algodid, inputdids, workflowchain, signerverified, reason),
      UPDATE (stopreq, removed, registered)
    ON jobs TO operator_compute;
GRANT SELECT (namespace, status) ON envs TO operator_compute;
GRANT SELECT (workflowid, objectdue), UPDATE (objectdue) ON reaperjobs TO operator_compute;

-- results: reads where a job's outputs are.
GRANT SELECT (workflowid, owner, outputsurl, removed, provider, signerverified) ON jobs TO operator_results;

-- Both use nonces (function use_nonce()).
GRANT SELECT, INSERT ON usednonces TO operator_compute, operator_results;
GRANT SELECT ON prunednonces TO operator_compute, operator_results;
GRANT SELECT ON nonces TO operator_compute, operator_results;

-- environments: lists what engines have announced.
GRANT SELECT (namespace, status, lastping) ON envs TO operator_environments;

-- admin: finds a job's objects, and shows logs. Its POST /pgsqlinit only checks that no migration is missing.
GRANT SELECT (workflowid, namespace) ON jobs TO operator_admin;
GRANT SELECT (namespace, status, lastping) ON envs TO operator_admin;
GRANT SELECT ON keptlogs TO operator_admin;
GRANT SELECT (version, checksum) ON _sqlx_migrations TO operator_admin;

-- reaper: inserts and deletes no job.
GRANT SELECT,
      UPDATE (status, statustext, datefinished, configlogurl, publishlogurl, algologurl, outputsurl, stopreq, removed,
              registered, dispatchedat, reason, algodid, inputdids, workflowchain)
    ON jobs TO operator_reaper;
GRANT SELECT (namespace, status, announcedat, idleat) ON envs TO operator_reaper;
GRANT SELECT, INSERT, UPDATE ON reaperjobs TO operator_reaper;
GRANT SELECT, INSERT, UPDATE, DELETE ON keptlogs TO operator_reaper;
GRANT SELECT, UPDATE ON sweeps TO operator_reaper;
GRANT SELECT, INSERT, UPDATE ON sweptenvs TO operator_reaper;
GRANT SELECT, INSERT, UPDATE ON reapercounts TO operator_reaper;
GRANT SELECT, DELETE ON usednonces TO operator_reaper;
GRANT SELECT, INSERT, UPDATE ON prunednonces TO operator_reaper;

-- The engine reads its user and password once, from its environment, and copies them into the pods that it starts: a password
-- that rotates would lock it out. If it leaks from a pod, it gives access to the columns below and to nothing else.
--
-- SELECT workflow | status | stopreq FROM jobs WHERE workflowId = … LIMIT 1. The other columns are what announce(),
-- which runs with its caller's permissions, reads to dispatch the oldest job that may still start.
GRANT SELECT (workflowid, workflow, status, stopreq,
              agreementid, namespace, datecreated, datefinished, removed, validuntil)
    ON jobs TO operator_engine;
-- UPDATE jobs SET status, statusText | stopreq = 2 | dateFinished = NOW(); the publishing pod writes the URLs of the
-- outputs, the four older columns included. announce() sets dispatchedat, and a reason where it ends a job.
GRANT UPDATE (status, statustext, stopreq, datefinished,
              outputsurl, configlogurl, publishlogurl, algologurl,
              dispatchedat, reason)
    ON jobs TO operator_engine;
-- announce() stores the announcement: INSERT … ON CONFLICT (namespace) DO UPDATE, which also needs SELECT on the columns
-- that it compares or names with EXCLUDED.
GRANT SELECT (namespace, status, lastping), INSERT (namespace, status, lastping), UPDATE (status, lastping)
    ON envs TO operator_engine;
