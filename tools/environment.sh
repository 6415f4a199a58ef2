# Sourced by the scripts of the README: makes a virtual environment in .venv and installs the project into it.
#
#   source tools/environment.sh EXTRAS      e.g. "quickstart" or "test"
#
# Runs once; a later call finds stamps of the same setup.py for all of its extras and returns at once. PYTHON names the
# Python to make it with (python3 by default), VENV another folder, e.g. for a second Python beside the first.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_extras=${1:?extras of setup.py, e.g. quickstart}
_venv=$(realpath -ms "${VENV:-$_root/.venv}")
_python=${PYTHON:-python3}
if [ -x "$_venv/bin/python" ]; then
    _version='import sys; print("%d.%d" % sys.version_info[:2])'
    _has=$("$_venv/bin/python" -c "$_version")
    [ -z "${PYTHON:-}" ] || [ "$_has" = "$("$PYTHON" -c "$_version")" ] || {
        echo "error: $_venv has Python $_has, and PYTHON=$PYTHON is another: remove it, or set VENV=.venv-other" >&2
        exit 1
    }
    _python=$_venv/bin/python
fi
"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, $("$_python" --version) was found; name another with PYTHON=..." >&2
    exit 1
}
_stamp=$_venv/installed-$(sha256sum <"$_root/setup.py" | cut -c1-16)
_missing=
for _extra in ${_extras//,/ }; do
    [ -e "$_stamp-$_extra" ] || _missing=yes
done
if [ -n "$_missing" ]; then
    echo "installing into $_venv (once, a few minutes) ..."
    _pip() { "$_venv/bin/python" -m pip install -q --disable-pip-version-check "$@"; }
    # torch first and by its exact version, so that nothing else pulls another build of it.
    { [ -x "$_venv/bin/python" ] || "$_python" -m venv "$_venv"; } &&
        _pip torch==2.13.0 >"$_venv/install.log" 2>&1 &&
        _pip -e "${_root}[$_extras]" >>"$_venv/install.log" 2>&1 || {
        echo "error: the installation failed:" >&2
        tail -n 20 "$_venv/install.log" >&2
        exit 1
    }
    for _extra in ${_extras//,/ }; do touch "$_stamp-$_extra"; done
fi
export PATH="$_venv/bin:$PATH" VIRTUAL_ENV="$_venv"
