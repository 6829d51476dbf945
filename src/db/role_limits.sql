-- Limits the role that the setting operator_service.role names, in this database. An operation of the service takes at most
-- 5 s; what it has given up then ends after one more.
DO $$
DECLARE
    setting record;
BEGIN
    FOR setting IN
        SELECT name, value
        FROM (VALUES ('statement_timeout', '6s'),
                     ('idle_in_transaction_session_timeout', '6s'),
                     ('client_connection_check_interval', '1s')) AS limits (name, value)
        -- Older servers do not have all of them.
        WHERE EXISTS (SELECT FROM pg_settings WHERE pg_settings.name = limits.name)
    LOOP
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET %I = %L',
                       current_setting('operator_service.role'), current_database(), setting.name, setting.value);
    END LOOP;
END
$$;
