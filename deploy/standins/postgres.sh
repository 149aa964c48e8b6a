#!/bin/sh
# What docker-compose.yml asks of the PostgreSQL image, with another build of PostgreSQL.
set -eu
data=/var/lib/postgresql/data
if [ ! -s "$data/PG_VERSION" ]; then
    initdb -D "$data" -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=scram-sha-256 -E UTF8
    pg_ctl -D "$data" -w -o "-k /run/postgresql -c listen_addresses=" start
    PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") createdb -h /run/postgresql -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -D "$data" -w stop
    echo "host all all all scram-sha-256" >> "$data/pg_hba.conf"
fi
exec postgres -D "$data" -k /run/postgresql -c "listen_addresses=*"
