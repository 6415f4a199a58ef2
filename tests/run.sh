#!/usr/bin/env bash
# Installs what the tests need into .venv and, for root, Slurm into the system; then runs them all. Arguments go to
# pytest, e.g. `bash tests/run.sh -k layouts`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh test
# Metrics are compared with lmms-eval's, single files of it: what it depends on is a training stack of its own.
python -m pip install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
# Transformer Engine's layers are compared on a CPU, by its sources and what they import. They stay off the import path:
# Megatron-Core, transformers and accelerate would take them for a working installation.
_sources=$VIRTUAL_ENV/transformer-engine-2.11.0
if [ ! -d "$_sources" ]; then
    rm -rf "$_sources.part" # of an installation that broke off
    python -m pip install -q --disable-pip-version-check --no-deps --target "$_sources.part" \
        transformer-engine==2.11.0 einops==0.8.2 onnx==1.23.2 onnxscript==0.7.2 onnx_ir==1.1.0 ml_dtypes==0.6.0
    mv "$_sources.part" "$_sources"
fi
# The tests of jobs need a Slurm, which root can install on Debian and Ubuntu. Elsewhere they skip and say why.
[ "$(id -u)" != 0 ] || bash tests/slurm/cluster.sh install || [ $? = 3 ]
# Ranks are processes; more threads than cores would only make them wait for each other.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m pytest -q -rs --durations=10 "$@"
