set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf %s "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth scram-sha-256 >/dev/null
  rm /tmp/password
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --wait --options "-c listen_addresses=''" start
  PGPASSWORD=$POSTGRES_PASSWORD createdb --host /var/run/postgresql --username "$POSTGRES_USER" "$POSTGRES_DB" || true
  pg_ctl --wait stop
fi
exec postgres -c listen_addresses='*'
