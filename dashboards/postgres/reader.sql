-- The role that Grafana reads with: the public views and nothing else, and no query without an end.
-- Run after every migration, which makes the views anew. `reader_password` is set by the caller (psql -v).
SELECT format('CREATE ROLE learnmech_reader LOGIN PASSWORD %L', :'reader_password')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'learnmech_reader')
\gexec

SELECT format('ALTER ROLE learnmech_reader LOGIN PASSWORD %L', :'reader_password')
\gexec

ALTER ROLE learnmech_reader NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE learnmech_reader SET default_transaction_read_only = on;
ALTER ROLE learnmech_reader SET statement_timeout = '30s';
ALTER ROLE learnmech_reader SET idle_in_transaction_session_timeout = '30s';

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO learnmech_reader;
GRANT SELECT ON runs, observations, latest, residuals, events, ticks, measurements TO learnmech_reader;
