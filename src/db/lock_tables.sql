-- Locks the tables that the migrations change, in the order in which others use them.

-- First only against VACUUM, which may take minutes: nobody else waits behind this, and after a second PostgreSQL cancels an
-- autovacuum that keeps it waiting.
SET LOCAL lock_timeout = '10s';
DO $$
DECLARE
    in_use text;
BEGIN
    FOREACH in_use IN ARRAY '{envs,nonces,usednonces,jobs}'::text[] LOOP
        IF to_regclass(in_use) IS NOT NULL THEN
            EXECUTE format('LOCK TABLE %I IN SHARE UPDATE EXCLUSIVE MODE', in_use);
        END IF;
    END LOOP;
END
$$;

-- Each of these is waited for only for a moment, in which everybody else waits behind this transaction. If one is not free,
-- the migrator tries again later.
SET LOCAL lock_timeout = '100ms';
DO $$
BEGIN
    IF to_regclass('envs') IS NOT NULL THEN
        LOCK TABLE envs IN ACCESS EXCLUSIVE MODE;
    END IF;
    IF to_regclass('nonces') IS NOT NULL THEN
        -- Migration 4 replaces the index of an earlier version. Otherwise readers may go on: the Python service reads the
        -- table to its end for each request.
        IF to_regclass('nonces_signer_c') IS NOT NULL THEN
            LOCK TABLE nonces IN ACCESS EXCLUSIVE MODE;
        ELSE
            LOCK TABLE nonces IN SHARE MODE;
        END IF;
    END IF;
    IF to_regclass('usednonces') IS NOT NULL THEN
        LOCK TABLE usednonces IN ACCESS EXCLUSIVE MODE;
    END IF;
    LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE;
END
$$;

-- The migrations read only what indexes find.
SET LOCAL enable_seqscan = off;
