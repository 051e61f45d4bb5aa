#!/usr/bin/env bash
# Usage: tools/setup.sh STACK ENVIRONMENT
#
# Prepares the environment: torch, mmcv compiled against it, and everything
# else that requirements/STACK.txt pins. A second run sees that nothing changed
# and returns at once. PYTHON=/path/to/python3.11 picks another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly stack=${1:?a stack is missing, see the usage at the top}
readonly environment=${2:?an environment is missing, see the usage at the top}
readonly lock=requirements/$stack.txt
readonly python=$environment/bin/python
readonly stamp=$environment/.setup-done

is_done() {
    [[ -x $python && -f $stamp && $(<"$stamp") == "$wanted" ]]
}

say() {
    printf 'setup: %s\n' "$*"
}

fail() {
    printf 'setup: error: %s\n' "$@" >&2
    exit 1
}

stacks() {
    basename -s .txt requirements/*.txt | paste -sd ' '
}

pin() {  # NAME, a pattern -> NAME==VERSION, as pinned
    grep -E "^($1)==" "$lock"
}

is_installed() {  # NAME==VERSION
    "$python" - "$1" <<'END'
import sys
from importlib import metadata

name, version = sys.argv[1].split('==')
try:
    sys.exit(metadata.version(name) != version)
except metadata.PackageNotFoundError:
    sys.exit(1)
END
}

is_python311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>&-
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 /usr/bin/python3.11}; do
        if is_python311 "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail 'Python 3.11 is needed, the version the pinned packages are for.' \
        'Install it, or name it: make setup PYTHON=/path/to/python3.11'
}

install_pip() {  # into an environment that was made without it
    "$python" - <<'END'
import hashlib
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

url = (
    'https://files.pythonhosted.org/packages/44/3c/'
    'd717024885424591d5376220b5e836c2d5293ce2011523c9de23ff7bf068/'
    'pip-25.3-py3-none-any.whl'
)
digest = '9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd'

data = urllib.request.urlopen(url, timeout=60).read()
if hashlib.sha256(data).hexdigest() != digest:
    sys.exit('the downloaded pip is not the expected file')
with tempfile.TemporaryDirectory() as folder:
    wheel = Path(folder, url.rpartition('/')[2])
    wheel.write_bytes(data)
    # pip runs from its own wheel
    command = [sys.executable, f'{wheel}/pip', 'install', '-qq', str(wheel)]
    sys.exit(subprocess.run(command).returncode)
END
}

make_environment() {
    if ! { [[ -x $python ]] && is_python311 "$python"; }; then
        local base
        base=$(find_python)
        say "making $environment with $("$base" --version)"
        # Debian keeps ensurepip in a package of its own (python3-venv), so
        # pip is fetched afterwards where it does not come along.
        "$base" -m venv --clear "$environment" >/dev/null 2>&1 ||
            "$base" -m venv --clear --without-pip "$environment" ||
            fail "a virtual environment could not be made in $environment" \
                'On Debian: apt-get install python3.11-venv'
    fi
    "$python" -m pip --version >/dev/null 2>&1 || install_pip ||
        fail "pip could not be installed into $environment" \
            'On Debian: apt-get install python3.11-venv, then try again.'
}

check_disk() {  # pip would say so after minutes, in the middle of it
    local needed=10 free
    free=$(df -Pk "$environment" | awk 'NR == 2 { print int($4 / 1048576) }')
    ((free >= needed)) || fail \
        "$environment needs $needed GB of disk while it is made, but there are $free GB free."
}

check_compiler() {
    command -v "${CXX:-c++}" >/dev/null || fail \
        'mmcv comes as source and needs a C++ compiler.' \
        'On Debian: apt-get install g++'
    local include
    include=$("$python" -c 'import sysconfig as s; print(s.get_path("include"))')
    [[ -f $include/Python.h ]] || fail \
        "mmcv comes as source and needs Python's headers ($include/Python.h)." \
        'On Debian: apt-get install python3.11-dev'
}

pip_install() {
    "$python" -m pip install -qq --no-input --disable-pip-version-check \
        --no-warn-script-location "$@"
}

ticker=
with_progress() {  # LABEL LOG COMMAND...: a line every 30 s while it runs
    local label=$1 log=$2 began=$SECONDS status=0
    shift 2
    : >"$log"
    (
        trap 'kill "$nap" 2>/dev/null; exit' TERM
        while kill -0 $$ 2>/dev/null; do
            sleep 30 >/dev/null 2>&1 &
            nap=$!
            wait "$nap"
            passed=$((SECONDS - began))
            step=$(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)
            printf 'setup: %s, %d:%02d so far %s\n' \
                "$label" $((passed / 60)) $((passed % 60)) "$step"
        done
    ) &
    ticker=$!
    "$@" >>"$log" 2>&1 || status=$?
    stop_ticker
    if ((status)); then
        tail -n 30 "$log" | cut -c -300 >&2
        fail "$label failed, see $log"
    fi
}

stop_ticker() {
    if [[ -n $ticker ]]; then
        kill "$ticker" 2>/dev/null || true
        wait "$ticker" 2>/dev/null || true
        ticker=
    fi
}

build_mmcv() {  # [PIP OPTION]...
    check_compiler
    local jobs=${MAX_JOBS:-$(env -u OMP_NUM_THREADS nproc)}
    say "building mmcv from source (MAX_JOBS=$jobs), once:" \
        "$((12 / jobs + 1)) to $((28 / jobs + 1)) minutes" \
        '(seconds where pip kept an earlier build)'
    MAX_JOBS=$jobs with_progress 'building mmcv' \
        "$environment/mmcv-build.log" \
        "$python" -m pip install --verbose --no-input --no-deps \
        --no-build-isolation "$@" "$mmcv"
}

install_everything() {
    if ! { is_installed "$torch" && is_installed "$torchvision"; }; then
        check_disk
        say 'installing torch and torchvision (3 GB to download, 2-5 minutes)'
    fi
    pip_install --constraint "$lock" "$torch" "$torchvision" \
        "$(pin setuptools)" "$(pin wheel)" "$(pin packaging)" \
        "$(pin ninja)" "$(pin psutil)"

    is_installed "$mmcv" || build_mmcv

    say 'installing the other packages'
    pip_install --no-deps --requirement "$lock"
    if "$python" -m pip show --quiet opencv-python >/dev/null 2>&1; then
        # Both builds own the same cv2 folder, so the one that stays is put
        # back after the other has gone.
        "$python" -m pip uninstall --quiet --yes opencv-python
        pip_install --no-deps --force-reinstall "$(pin opencv-python-headless)"
    fi
    pip_install --no-deps --no-build-isolation --editable .

    # pip may have kept an mmcv that was compiled against another torch
    "$python" -c 'import mmcv.ops' >/dev/null 2>&1 ||
        build_mmcv --force-reinstall --no-cache-dir
    "$python" -c "import cv2, mmcv.ops, mmdet, $classification, sklearn" ||
        fail 'the environment does not work, see above'
}

[[ -f $lock ]] ||
    fail "there is no stack '$stack'; choose one of: $(stacks)"
# The place is part of it: scripts in an environment hold absolute paths.
wanted=$(
    { pwd; cat "$lock" tools/setup.sh setup.py mmgfp/version.py; } | sha256sum
)
is_done && exit

torch=$(pin torch)
torchvision=$(pin torchvision)
# the maintained continuation has names of its own, but the same import names
mmcv=$(pin '(onedl-)?mmcv')
classification=$(pin '(onedl-)?mmpretrain|mmcls')
classification=${classification%==*}
classification=${classification#onedl-}

trap stop_ticker EXIT
trap 'exit 130' INT
exec 9<tools/setup.sh  # two setups at once would break each other
if command -v flock >/dev/null; then
    flock 9
fi
is_done && exit

rm -f "$stamp"  # so that an interrupted setup counts as none
make_environment
install_everything
printf '%s\n' "$wanted" >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done in $((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))"
