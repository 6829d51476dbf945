-- Creates the engine's own database role, with only the grants that its statements need.
--
-- The engine reads its user and password once, from its environment, and copies them into the pods that it starts. A
-- rotated password would lock it out, so it has a role with a password that is not rotated. If that password leaks from a
-- pod, it gives access to the columns below and to nothing else: no DELETE, no INSERT of jobs, no owners, no nonces.
--
-- Run it with psql 14 or later as the owner of the tables (the user that `migrate` runs as), after the migrations, and
-- again after changing the password. It may be run any number of times.
--
--   ENGINE_PASSWORD=… psql "host=… dbname=… user=… sslmode=verify-full sslrootcert=…" -f infra/database/engine-role.sql
--
-- ENGINE_USER names the role (default: operator_engine). The password is read from the environment, so that it does not
-- appear on a command line.

\set ON_ERROR_STOP on
\set engine_user operator_engine
\getenv engine_user ENGINE_USER
\getenv engine_password ENGINE_PASSWORD
\if :{?engine_password}
\else
    \warn 'set ENGINE_PASSWORD to the password that the role is to have'
    -- Ends psql with a non-zero exit code, unlike \quit.
    DO $$ BEGIN RAISE 'ENGINE_PASSWORD is not set'; END $$;
\endif

BEGIN;

SELECT format('CREATE ROLE %I', :'engine_user')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'engine_user') \gexec

-- A server with log_statement = ddl or all writes the next line to its log; RDS's default is none.
ALTER ROLE :"engine_user" WITH LOGIN NOCREATEDB NOCREATEROLE PASSWORD :'engine_password';

-- An earlier version of this file may have granted more.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM :"engine_user";

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'engine_user') \gexec
GRANT USAGE ON SCHEMA public TO :"engine_user";

-- SELECT workflow | status | stopreq FROM jobs WHERE workflowId = … LIMIT 1. The other columns are what announce(),
-- which runs with its caller's permissions, reads to dispatch the oldest job that may still start.
GRANT SELECT (workflowid, workflow, status, stopreq,
              agreementid, namespace, datecreated, datefinished, removed, validuntil)
    ON jobs TO :"engine_user";

-- UPDATE jobs SET status, statusText | stopreq = 2 | dateFinished = NOW(); the publishing pod writes the URLs of the
-- outputs, the four older columns included. announce() sets dispatchedat, and a reason where it ends a job.
GRANT UPDATE (status, statustext, stopreq, datefinished,
              outputsurl, configlogurl, publishlogurl, algologurl,
              dispatchedat, reason)
    ON jobs TO :"engine_user";

-- announce() stores the announcement: INSERT … ON CONFLICT (namespace) DO UPDATE, which also needs SELECT on the columns
-- that it compares or names with EXCLUDED.
GRANT SELECT (namespace, status, lastping), INSERT (namespace, status, lastping), UPDATE (status, lastping)
    ON envs TO :"engine_user";
GRANT EXECUTE ON FUNCTION announce(varchar, text, int) TO :"engine_user";

COMMIT;
