-- The engine's own database role, with just the grants that its statements need.
--
-- The engine copies its user and password from its own environment into the pods that it starts, and never reads
-- them again. A secret that rotates would cut it off, so it gets a role and a password of its own, which nobody
-- rotates behind its back. Should that password leak from a pod, it opens the books of the jobs and nothing else:
-- no DELETE, no INSERT of jobs, no owners, no nonces.
--
-- Run it with psql 14 or later as the owner of the tables (the user that `migrate` runs as), after the schema is up to
-- date, and again after changing the password. It may be run any number of times.
--
--   ENGINE_PASSWORD=… psql "host=… dbname=… user=… sslmode=verify-full sslrootcert=…" -f infra/database/engine-role.sql
--
-- ENGINE_USER names the role; without it, it is called operator_engine. The password comes by the environment, so
-- that it is on no command line.

\set ON_ERROR_STOP on
\set engine_user operator_engine
\getenv engine_user ENGINE_USER
\getenv engine_password ENGINE_PASSWORD
\if :{?engine_password}
\else
    \warn 'set ENGINE_PASSWORD to the password that the engine is to have'
    -- Ends psql with an error, which \quit would not.
    DO $$ BEGIN RAISE 'ENGINE_PASSWORD is not set'; END $$;
\endif

BEGIN;

SELECT format('CREATE ROLE %I', :'engine_user')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'engine_user') \gexec

-- A server with log_statement = ddl or all writes the next line to its log; RDS's default is none.
ALTER ROLE :"engine_user" WITH LOGIN NOCREATEDB NOCREATEROLE PASSWORD :'engine_password';

-- What an earlier version of this file granted and this one does not.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM :"engine_user";

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'engine_user') \gexec
GRANT USAGE ON SCHEMA public TO :"engine_user";

-- SELECT workflow | status | stopreq FROM jobs WHERE workflowId = … LIMIT 1. The other columns are what announce(),
-- which runs with the rights of its caller, looks at to hand out the oldest job that may still start.
GRANT SELECT (workflowid, workflow, status, stopreq,
              agreementid, namespace, datecreated, datefinished, removed, validuntil)
    ON jobs TO :"engine_user";

-- UPDATE jobs SET status, statusText | stopreq = 2 | dateFinished = NOW(); the publishing pod writes where the outputs
-- lie, the four older columns for URLs among them. announce() sets handedout.
GRANT UPDATE (status, statustext, stopreq, datefinished,
              outputsurl, configlogurl, publishlogurl, algologurl,
              handedout)
    ON jobs TO :"engine_user";

-- announce() files the announcement: INSERT … ON CONFLICT (namespace) DO UPDATE, which has to read what it compares and
-- what EXCLUDED names.
GRANT SELECT (namespace, status, lastping), INSERT (namespace, status, lastping), UPDATE (status, lastping)
    ON envs TO :"engine_user";
GRANT EXECUTE ON FUNCTION announce(varchar, text, int) TO :"engine_user";

COMMIT;
