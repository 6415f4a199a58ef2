# Sourced by the scripts of the README: makes a virtual environment in .venv and installs the project into it.
#
#   source tools/environment.sh EXTRAS      e.g. "quickstart" or "test"
#
# Runs once; a later call finds stamps of the same setup.py for all of its extras and returns at once.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_extras=${1:?extras of setup.py, e.g. quickstart}
_python=${PYTHON:-python3}
"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, $("$_python" --version) was found; name another with PYTHON=..." >&2
    exit 1
}
_stamp=$_root/.venv/installed-$(sha256sum <"$_root/setup.py" | cut -c1-16)
_missing=
for _extra in ${_extras//,/ }; do
    [ -e "$_stamp-$_extra" ] || _missing=yes
done
if [ -n "$_missing" ]; then
    echo "installing into $_root/.venv (once, a few minutes) ..."
    _pip="$_root/.venv/bin/python -m pip install -q --disable-pip-version-check"
    # torch first and by its exact version, so that nothing else pulls another build of it.
    { [ -x "$_root/.venv/bin/python" ] || "$_python" -m venv "$_root/.venv"; } &&
        $_pip torch==2.13.0 >"$_root/.venv/install.log" 2>&1 &&
        $_pip -e "$_root[$_extras]" >>"$_root/.venv/install.log" 2>&1 || {
        echo "error: the installation failed:" >&2
        tail -n 20 "$_root/.venv/install.log" >&2
        exit 1
    }
    for _extra in ${_extras//,/ }; do touch "$_stamp-$_extra"; done
fi
export PATH="$_root/.venv/bin:$PATH" VIRTUAL_ENV="$_root/.venv"
