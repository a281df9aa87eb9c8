-- Who Grafana is in the database of the tour: may read what is stuck, and nothing else, since whoever sees a dashboard
-- can send SQL in its name.
SELECT 'CREATE ROLE grafana LOGIN PASSWORD ''grafana'''
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana')
\gexec
GRANT USAGE ON SCHEMA runspan TO grafana;
GRANT SELECT ON runspan.stuck TO grafana;
GRANT EXECUTE ON FUNCTION runspan.stuck_runs() TO grafana;
