#!/usr/bin/env bash
# Installs what the tests need into .venv and, for root, Slurm into the system; then runs them all. Arguments go to
# pytest, e.g. `bash tests/run.sh -k layouts`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh test
# The tests of jobs need a Slurm, which root can install on Debian and Ubuntu. Elsewhere they skip and say why.
[ "$(id -u)" != 0 ] || bash tests/slurm/cluster.sh install || [ $? = 3 ]
# Ranks are processes; more threads than cores would only make them wait for each other.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m pytest -q -rs --durations=10 "$@"
