#!/bin/sh
# Writes deploy/secrets/ once: random passwords and the two URLs that hold them. Never overwrites.
# The folder is closed to others; the files inside are readable, because containers see them under their own uid.
set -eu
cd "$(dirname "$0")"
if [ -e secrets ]; then
    echo "deploy/secrets exists already" >&2
    exit 1
fi
mkdir -m 700 secrets
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
postgres=$(random)
valkey=$(random)
printf '%s' "$postgres" > secrets/postgres_password
printf '%s' "$valkey" > secrets/valkey_password
printf 'postgresql+psycopg://kleash:%s@postgres:5432/kleash' "$postgres" > secrets/database_url
printf 'redis://:%s@valkey:6379/0' "$valkey" > secrets/broker_url
chmod 444 secrets/*
