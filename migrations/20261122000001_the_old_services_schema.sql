-- What the Python service's POST /pgsqlinit made. On its databases every statement here finds its work done;
-- on an empty one this is where the tables come from that the engine (and, until the changeover is final, the
-- old service) read and write by these names and types.

-- A migration that cannot get its locks soon gives up, so that it never queues everybody else behind itself;
-- it is safe to try again.
SET LOCAL lock_timeout = '10s';

CREATE TABLE IF NOT EXISTS jobs (
    agreementid      varchar(255) NOT NULL,
    workflowid       varchar(255) NOT NULL,
    owner            varchar(255),
    status           int,
    statustext       varchar(255),
    laststatusupdate timestamp without time zone DEFAULT now(),
    datecreated      timestamp without time zone DEFAULT now(),
    datefinished     timestamp without time zone DEFAULT NULL,
    configlogurl     text,
    publishlogurl    text,
    algologurl       text,
    outputsurl       text,
    ddo              text,
    namespace        varchar(255),
    stopreq          smallint DEFAULT 0,
    removed          smallint DEFAULT 0,
    workflow         text,
    provider         varchar(255)
);

-- Columns that the old service added in its later versions.
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS provider varchar(255);
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS did varchar(255);
ALTER TABLE jobs ADD COLUMN IF NOT EXISTS chainid varchar(255);

CREATE UNIQUE INDEX IF NOT EXISTS uniq_agreementid_workflowid ON jobs (agreementid, workflowid);
CREATE INDEX IF NOT EXISTS indx_owner_jobs ON jobs (owner);

CREATE TABLE IF NOT EXISTS envs (
    namespace varchar(255) NOT NULL,
    status    text,
    lastping  timestamp without time zone DEFAULT now()
);

CREATE UNIQUE INDEX IF NOT EXISTS unique_namespace ON envs (namespace);

CREATE TABLE IF NOT EXISTS nonces (
    provider varchar(255) NOT NULL,
    nonce    varchar(255)
);
