-- What the reaper's sweeps have found and done since this table was made, for Prometheus: a sweep is a process of its own,
-- which has ended before anything could read its counters.
CREATE TABLE IF NOT EXISTS reapercounts (
    duty   text   PRIMARY KEY,
    found  bigint NOT NULL, -- over all sweeps
    done   bigint NOT NULL, -- the same
    failed bigint NOT NULL, -- the same
    "left" bigint NOT NULL  -- by the last sweep
);
-- Sweeps that ended by themselves, and when the last of them did.
ALTER TABLE sweeps ADD COLUMN IF NOT EXISTS runs bigint NOT NULL DEFAULT 0;
ALTER TABLE sweeps ADD COLUMN IF NOT EXISTS lastrun timestamptz;
