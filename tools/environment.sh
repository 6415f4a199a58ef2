# Sourced by the scripts of the README: makes a virtual environment in .venv and installs the project into it.
#
#   source tools/environment.sh EXTRAS      e.g. "quickstart" or "test"
#
# Runs once; a later call finds the stamp of the same setup.py and extras and returns at once.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_extras=${1:?extras of setup.py, e.g. quickstart}
_python=${PYTHON:-python3}
"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, $("$_python" --version) was found; name another with PYTHON=..." >&2
    exit 1
}
_want=$({ sha256sum <"$_root/setup.py"; echo "$_extras"; } | sha256sum | cut -c1-16)
if [ ! -e "$_root/.venv/installed-$_want" ]; then
    echo "installing into $_root/.venv (once, some minutes) ..."
    [ -x "$_root/.venv/bin/python" ] || "$_python" -m venv "$_root/.venv"
    # torch first and by its exact version, so that nothing else pulls another build of it.
    "$_root/.venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.13.0 2>&1 | grep -v ^WARNING || true
    "$_root/.venv/bin/python" -m pip install -q --disable-pip-version-check -e "$_root[$_extras]" 2>&1 |
        grep -v ^WARNING || true
    "$_root/.venv/bin/python" -c 'import torch, megatron.core, transformers, megatron_focus' || {
        echo "error: the installation failed; its messages stand above" >&2
        exit 1
    }
    touch "$_root/.venv/installed-$_want"
fi
export PATH="$_root/.venv/bin:$PATH" VIRTUAL_ENV="$_root/.venv"
