#!/usr/bin/env bash
# Writes locks/{api,worker,dev,bench}.lock: hashed, every platform, Python 3.11-3.13. Run by `make lock`.
# torch is left out (pinned and installed first by pip), and so are the CUDA packages that it would pull on Linux.
set -euo pipefail
cd "$(dirname "$0")/.."
hashed() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links "$@"
}
compile() {
    local out=$1
    shift
    hashed --no-emit-package torch --excludes locks/cuda-packages.txt "$@" pyproject.toml -o "locks/$out.lock"
}
compile dev --extra api --extra worker --extra dev
compile worker --extra api --extra worker -c locks/dev.lock
compile api --extra api -c locks/dev.lock
# Benchmarks alone: ctranslate2, the last TRL with PPO and what that needs besides the worker's packages.
printf '%s\n' ctranslate2==4.8.5 trl==1.12.0 datasets==5.2.0 'dill<0.4.2' 'multiprocess<0.70.20' pandas pyarrow xxhash |
    hashed --no-deps - -o locks/bench.lock
