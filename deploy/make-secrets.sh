#!/bin/sh
# Writes into deploy/secrets/ what is not there yet: random passwords, and the two URLs that hold them. Never overwrites.
# The folder is closed to others; the files inside are readable, because containers see them under their own uid.
set -eu
cd "$(dirname "$0")"
mkdir -p -m 700 secrets
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { # NAME CONTENT
    if [ ! -e "secrets/$1" ]; then
        printf '%s' "$2" > "secrets/$1"
        chmod 444 "secrets/$1"
    fi
}
keep postgres_password "$(random)"
keep valkey_password "$(random)"
keep database_url "postgresql+psycopg://kleash:$(cat secrets/postgres_password)@postgres:5432/kleash"
keep broker_url "redis://:$(cat secrets/valkey_password)@valkey:6379/0"
keep scorer_token "$(random)"
keep reward_secret "whsec_$(head -c 32 /dev/urandom | base64 | tr -d '\n')"
