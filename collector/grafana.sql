-- Grafana's role in the database of the tour: it may read only the stuck runs, because anyone who can open a dashboard can
-- run SQL as this role.
SELECT 'CREATE ROLE grafana LOGIN PASSWORD ''grafana'''
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana')
\gexec
GRANT USAGE ON SCHEMA runspan TO grafana;
GRANT SELECT ON runspan.stuck TO grafana;
GRANT EXECUTE ON FUNCTION runspan.stuck_runs() TO grafana;
