-- What a repeated request and a list need to know.

SET LOCAL lock_timeout = '10s';

-- A nonce, and the request that used it.
ALTER TABLE usednonces
    -- In Ocean Node's forms of signature, the digest of the request: concurrent requests of one node share a nonce.
    -- Otherwise empty, so that a nonce passes once.
    ADD COLUMN IF NOT EXISTS content bytea NOT NULL DEFAULT '',
    -- The digest of the request. NULL in rows of earlier versions, whose requests cannot be repeated.
    ADD COLUMN IF NOT EXISTS digest bytea,
    -- What the request made: the id of the job that it started, otherwise an id of the request itself.
    ADD COLUMN IF NOT EXISTS made text,
    ADD COLUMN IF NOT EXISTS usedat timestamptz NOT NULL DEFAULT now();

-- The migrator builds the indexes of a database in use beforehand (src/db/prepare.rs).
CREATE UNIQUE INDEX IF NOT EXISTS usednonces_content ON usednonces (signer, ns, content);
ALTER TABLE usednonces
    DROP CONSTRAINT usednonces_pkey,
    ADD CONSTRAINT usednonces_pkey PRIMARY KEY USING INDEX usednonces_content;

-- Up to which nonce, inclusive, those of a signer have been deleted: they count as used, whatever NONCE_WINDOW is later.
CREATE TABLE IF NOT EXISTS prunednonces (
    signer text    PRIMARY KEY,
    ns     numeric NOT NULL
);

-- Earlier versions recorded no such limit: below a signer's lowest nonce, any may have been deleted.
INSERT INTO prunednonces (signer, ns)
SELECT signer, min(ns) - 1 FROM usednonces GROUP BY signer
ON CONFLICT DO NOTHING;

-- The functions of migration 2 again: the index on `nonces` has the collation "C", in which building it takes a fraction of
-- the time. nonce_passes() is for an earlier version of this service, if a deployment is rolled back.
CREATE OR REPLACE FUNCTION highest_nonce(address text) RETURNS TABLE (ns numeric, nonce text)
    LANGUAGE sql STABLE AS
$$
SELECT used.ns, used.nonce
FROM ((SELECT usednonces.ns, usednonces.nonce FROM usednonces WHERE signer = address ORDER BY usednonces.ns DESC LIMIT 1)
      UNION ALL
      (SELECT nonce_ns(nonces.nonce), nonces.nonce FROM nonces WHERE lower(provider) COLLATE "C" = address)) AS used
WHERE used.ns IS NOT NULL
ORDER BY used.ns DESC
LIMIT 1
$$;

CREATE OR REPLACE FUNCTION nonce_passes(address text, attempt text, within float8) RETURNS boolean
    LANGUAGE sql VOLATILE AS
$$
SELECT NOT nonce_is_ahead(attempt, within)
   AND nonce_ns(attempt) >= coalesce((SELECT ns FROM highest_nonce(address)) - within::numeric * 1e9, 0)
   AND NOT EXISTS (SELECT FROM nonces WHERE lower(provider) COLLATE "C" = address AND nonce_ns(nonce) = nonce_ns(attempt))
   AND NOT EXISTS (SELECT FROM prunednonces WHERE signer = address AND ns >= nonce_ns(attempt))
$$;

-- As in migration 2, in PL/pgSQL: it keeps the plans of its statements, which functions in SQL do not.
CREATE OR REPLACE FUNCTION nonce_ns(nonce text) RETURNS numeric
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$function$
DECLARE
    value numeric;
BEGIN
    IF nonce ~ '^[0-9]{1,64}(\.[0-9]{1,64})?([eE][+-]?[0-9]{1,2})?$' THEN
        value := nonce::numeric;
        RETURN CASE
            WHEN value >= 1e17 THEN value
            WHEN value >= 1e14 THEN value * 1e3
            WHEN value >= 1e11 THEN value * 1e6
            ELSE value * 1e9
        END;
    END IF;
    RETURN NULL;
END
$function$;

-- Why a signer may not use a nonce; NULL if it may. `ahead`: it is further ahead of the clock than the window (in seconds)
-- allows. `old`: it is further below the signer's highest. `used`: it has been used. With `shared`, another request may
-- have used it, as long as the nonce is less than 5 seconds old; if that is NULL, whether it was used does not matter.
-- Without an address there is nothing to refuse. Whether the same request has used it is decided by the primary key of
-- usednonces, in use_nonce().
CREATE OR REPLACE FUNCTION nonce_refusal(address text, attempt text, within float8, shared boolean,
                                         OUT refusal text, OUT highest text)
    LANGUAGE plpgsql STABLE AS
$function$
DECLARE
    value   constant numeric := nonce_ns(attempt);
    clock   constant numeric := extract(epoch FROM clock_timestamp())::numeric * 1e9;
    allowed constant numeric := within::numeric * 1e9;
    highest_ns numeric;
BEGIN
    IF address IS NULL THEN
        RETURN;
    END IF;
    SELECT used.ns, used.nonce INTO highest_ns, highest FROM highest_nonce(address) AS used;
    IF value > clock + allowed THEN
        refusal := 'ahead';
    ELSIF value < highest_ns - allowed
        OR value <= (SELECT pruned.ns FROM prunednonces AS pruned WHERE pruned.signer = address) THEN
        refusal := 'old';
    ELSIF shared IS NOT NULL
        AND (EXISTS (SELECT FROM nonces WHERE lower(provider) COLLATE "C" = address AND nonce_ns(nonce) = value)
             OR NOT (shared AND value > clock - 5e9)
                AND EXISTS (SELECT FROM usednonces AS used WHERE used.signer = address AND used.ns = value)) THEN
        refusal := 'used';
    END IF;
END
$function$;

-- Uses a nonce for a request, in one step: of concurrent requests with one nonce, one passes, and the others wait for the
-- end of its transaction. Returns no refusal if the nonce is taken now, or was taken by this very attempt (`this`, which
-- becomes `made`) on a connection that was lost since. If the same request (`request`, its digest) has used it within the
-- window, the refusal is `repeated`, with what that made. Without an address there is nothing to use.
CREATE OR REPLACE FUNCTION use_nonce(address text, attempt text, within float8, shared boolean, request bytea, this text,
                                     OUT refusal text, OUT highest text, OUT made text)
    LANGUAGE plpgsql VOLATILE AS
$function$
#variable_conflict use_column
DECLARE
    earlier record;
BEGIN
    IF address IS NULL THEN
        RETURN;
    END IF;
    SELECT checked.refusal, checked.highest INTO refusal, highest
    FROM nonce_refusal(address, attempt, within, shared) AS checked;
    IF refusal IS NULL THEN
        INSERT INTO usednonces (signer, ns, nonce, content, digest, made)
        VALUES (address, nonce_ns(attempt), attempt, CASE WHEN shared THEN request ELSE '' END, request, this)
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN;
        END IF;
        refusal := 'used';
    END IF;
    SELECT used.made, used.usedat > clock_timestamp() - make_interval(secs => within) AS recent INTO earlier
    FROM usednonces AS used
    WHERE used.signer = address AND used.ns = nonce_ns(attempt) AND used.digest = request;
    IF earlier.made = this THEN
        refusal := NULL;
    ELSIF earlier.recent THEN
        refusal := 'repeated';
        made := earlier.made;
    END IF;
END
$function$;

-- Returns true, unless the statement was received more than `seconds` ago: then its sender has given it up, and an error
-- takes back what it did. `written`, which depends on what the statement writes, makes this its last step.
CREATE OR REPLACE FUNCTION in_time(seconds float8, written bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS
$function$
BEGIN
    IF clock_timestamp() > statement_timestamp() + make_interval(secs => seconds) THEN
        RAISE EXCEPTION 'the statement took longer than % seconds', seconds USING ERRCODE = 'query_canceled';
    END IF;
    RETURN true;
END
$function$;

-- What lists show of a workflow, so that no list reads it.
ALTER TABLE jobs
    -- stages[0].algorithm.id, or `raw` where it is absent or empty; empty text if the workflow cannot be read; NULL until
    -- a row of an earlier version has been read.
    ADD COLUMN IF NOT EXISTS algodid text,
    -- JSON: the list of every stages[0].input[].id that is not empty.
    ADD COLUMN IF NOT EXISTS inputdids text,
    -- JSON: the workflow's chainId as it was sent, if it has one.
    ADD COLUMN IF NOT EXISTS workflowchain text;

-- Whether an engine's announcement accepts jobs of a chain: its `allowedChainId` is absent, empty, no list, or contains
-- the chain, compared by value whether it is a number or text. An announcement that is no JSON object accepts every job.
CREATE OR REPLACE FUNCTION announcement_allows(announcement text, chain text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$function$
DECLARE
    allowed json;
BEGIN
    allowed := announcement::json -> 'allowedChainId';
    IF allowed IS NULL OR json_typeof(allowed) <> 'array' OR json_array_length(allowed) = 0 THEN
        RETURN true;
    END IF;
    RETURN EXISTS (SELECT FROM json_array_elements_text(allowed) AS chains (value)
                   WHERE btrim(value) <> '' AND ltrim(btrim(value), '0') = ltrim(chain, '0'));
EXCEPTION
    WHEN data_exception OR untranslatable_character THEN
        RETURN true;
END
$function$;

-- The index on `nonces` in the collation of its queries.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_index
               WHERE indexrelid = 'nonces_signer'::regclass AND indcollation[0] <> '"C"'::regcollation) THEN
        CREATE INDEX IF NOT EXISTS nonces_signer_c ON nonces ((lower(provider)) COLLATE "C");
        DROP INDEX nonces_signer;
        ALTER INDEX nonces_signer_c RENAME TO nonces_signer;
    END IF;
END
$$;

-- What lists show of a stored workflow, by the rule of src/domain/workflow/stored.rs. Never fails: if the workflow cannot be
-- read, algodid is empty.
CREATE OR REPLACE FUNCTION workflow_summary(document text,
                                            OUT algodid text, OUT inputdids text, OUT workflowchain text)
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$function$
DECLARE
    workflow json;
    stage    json;
    id       json;
    chain    json;
BEGIN
    algodid := '';
    inputdids := '[]';
    -- NUL, which text cannot hold, becomes U+FFFD. Pairs of backslashes are replaced first: `\\u0000` is no NUL.
    IF strpos(document, '\u0000') > 0 THEN
        document := replace(replace(document, '\\', '\u005c'), '\u0000', '\ufffd');
    END IF;
    -- One key at a time: of a key that an object has twice, the last counts.
    workflow := document::json -> 'spec' -> 'metadata';
    stage := coalesce(workflow -> 'stages' -> 0, workflow -> 'stages' -> '0');
    chain := workflow -> 'chainId';
    IF json_typeof(chain) <> 'null' THEN
        workflowchain := chain::text;
    END IF;
    IF stage IS NULL THEN
        RETURN;
    END IF;
    id := stage -> 'algorithm' -> 'id';
    algodid := coalesce(CASE WHEN json_typeof(id) = 'string' THEN nullif(id #>> '{}', '') END, 'raw');
    IF json_typeof(stage -> 'input') = 'array' THEN
        SELECT coalesce(json_agg(input.value -> 'id' ORDER BY input.number), '[]')::text INTO inputdids
        FROM json_array_elements(stage -> 'input') WITH ORDINALITY AS input (value, number)
        WHERE json_typeof(input.value -> 'id') = 'string' AND input.value ->> 'id' <> '';
    END IF;
EXCEPTION
    WHEN OTHERS THEN
        algodid := '';
        inputdids := '[]';
        workflowchain := NULL;
END
$function$;

-- Summarizes the workflows that the Python service and earlier versions of this service insert.
CREATE OR REPLACE FUNCTION jobs_inserted() RETURNS trigger
    LANGUAGE plpgsql AS
$function$
BEGIN
    SELECT summary.algodid, summary.inputdids, summary.workflowchain
    INTO NEW.algodid, NEW.inputdids, NEW.workflowchain
    FROM workflow_summary(NEW.workflow) AS summary;
    RETURN NEW;
END
$function$;

DROP TRIGGER IF EXISTS jobs_inserted ON jobs;
CREATE TRIGGER jobs_inserted BEFORE INSERT ON jobs
    FOR EACH ROW WHEN (NEW.algodid IS NULL) EXECUTE FUNCTION jobs_inserted();

-- The rows whose workflow is still to be summarized, in batches after the migration: unfinished jobs first, then those that
-- finished last.
CREATE INDEX IF NOT EXISTS jobs_unsummarized
    ON jobs (coalesce(-extract(epoch FROM datefinished)::float8, '-infinity'), workflowid) WHERE algodid IS NULL;
