#!/usr/bin/env bash
# Installs what the tests need into .venv and, for root, Slurm into the system; then runs them all. Arguments go to
# pytest, e.g. `bash tests/run.sh -k layouts`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh test
# Metrics are compared with lmms-eval's, single files of it: what it depends on is a training stack of its own.
python -m pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
# The tests of jobs need a Slurm, which root can install on Debian and Ubuntu. Elsewhere they skip and say why.
[ "$(id -u)" != 0 ] || bash tests/slurm/cluster.sh install || [ $? = 3 ]
# Ranks are processes; more threads than cores would only make them wait for each other.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m pytest -q -rs --durations=10 "$@"
