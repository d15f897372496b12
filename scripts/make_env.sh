#!/usr/bin/env bash
# Makes the virtual environment $VENV (default .venv) and installs this package into it, editable, with all extras.
# uv does it where it is installed, otherwise venv and pip; INSTALLER=pip or INSTALLER=uv chooses. See the Makefile.
# TORCH chooses PyTorch's build: cpu, cu126, rocm6.4, ... (a folder of $TORCH_INDEX), or default, what the installer takes
# by itself: on Linux a build with several GB of CUDA. Without TORCH it is cpu on Linux machines without an NVIDIA GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
INSTALLER=${INSTALLER:-}
TORCH=${TORCH:-}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl}
die() { printf '%s\n' "$@" >&2; exit 1; }

[ -n "$INSTALLER" ] || { if command -v uv > /dev/null; then INSTALLER=uv; else INSTALLER=pip; fi; }
case $INSTALLER in uv | pip) ;; *) die "INSTALLER=$INSTALLER: choose uv or pip" ;; esac

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1; }

find_python() {  # the first that runs and is new enough; a name on the PATH can be a wrapper around nothing
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

if ! "$VENV/bin/python" -c '' 2> /dev/null; then
    if ! python=$(find_python); then
        [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.10 or newer."
        [ "$INSTALLER" = uv ] || die "madad_lite needs Python 3.10 or newer; python3 is $(python3 --version 2>&1 || true)." \
            "Install one (or uv, which brings its own), or name it: make PYTHON=/path/to/python3.12"
        python=3.12  # uv fetches it
    fi
    echo "making the virtual environment $VENV with $INSTALLER ($python)"
    if [ "$INSTALLER" = uv ]; then
        uv venv --allow-existing --python "$python" "$VENV"
    else
        "$python" -m venv "$VENV" || die "$python cannot make a virtual environment." \
            "On Debian and Ubuntu: apt-get install python3-venv; then remove $VENV and try again."
    fi
fi
new_enough "$VENV/bin/python" || die "$VENV has $("$VENV/bin/python" --version), older than 3.10: remove $VENV and try again."

has_gpu() { nvidia-smi > /dev/null 2>&1; }
reachable() { "$VENV/bin/python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=10)' "$1" 2> /dev/null; }

if [ -z "$TORCH" ]; then
    TORCH=default
    # who has set uv's own variable has chosen
    if [ "$(uname -s)" = Linux ] && [ -z "${UV_TORCH_BACKEND:-}" ] && ! has_gpu; then TORCH=cpu; fi
fi
if [ "$TORCH" != default ] && ! reachable "$TORCH_INDEX/$TORCH/torch/"; then
    echo "$TORCH_INDEX/$TORCH cannot be reached: taking the default build of PyTorch, which may be larger"
    TORCH=default
fi

echo "installing madad_lite into $VENV with $INSTALLER (a few minutes the first time)"
if [ "$INSTALLER" = uv ]; then
    # uv does not read PIP_CONSTRAINT
    if [ -z "${UV_CONSTRAINT:-}" ] && [ -n "${PIP_CONSTRAINT:-}" ]; then export UV_CONSTRAINT=$PIP_CONSTRAINT; fi
    [ "$TORCH" = default ] || export UV_TORCH_BACKEND=$TORCH
    uv pip install --python "$VENV/bin/python" -e '.[dev]'
else
    "$VENV/bin/python" -m pip --version > /dev/null 2>&1 || "$VENV/bin/python" -m ensurepip --upgrade > /dev/null
    options=(--disable-pip-version-check --progress-bar off)
    # beside the other indexes, not in their place; 2.14.1+cpu counts as newer than 2.14.1
    [ "$TORCH" = default ] || options+=(--extra-index-url "$TORCH_INDEX/$TORCH")
    "$VENV/bin/python" -m pip install "${options[@]}" -e '.[dev]' | { grep -v 'already satisfied' || true; }
fi
