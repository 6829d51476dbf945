-- Records every change of a job, whoever makes it, in the order in which the rows were written.
CREATE SCHEMA history;
CREATE TABLE history.changes (
    number bigserial PRIMARY KEY,
    who text NOT NULL DEFAULT current_setting('application_name'),
    old jsonb,
    new jsonb
);
CREATE FUNCTION history.record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO history.changes (old, new)
    VALUES (to_jsonb(OLD) - 'workflow', to_jsonb(NEW) - 'workflow');
    RETURN NULL;
END $$;
CREATE TRIGGER history AFTER INSERT OR UPDATE OR DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION history.record();
