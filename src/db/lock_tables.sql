-- Locks the tables that the migrations change, in the order in which others use them. Each is waited for only for a moment, in
-- which everybody else waits behind this transaction; if one is not free, the migrator tries again later.
SET LOCAL lock_timeout = '100ms';
DO $$
BEGIN
    IF to_regclass('envs') IS NOT NULL THEN
        LOCK TABLE envs IN SHARE MODE;
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
