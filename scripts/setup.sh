#!/usr/bin/env bash
# Makes .venv from requirements.lock: every package in its pinned version, checked by its hash.
#   scripts/setup.sh .venv/bin       Another folder is somebody's own environment, and is only looked at.
set -euo pipefail
if [ "$1" != .venv/bin ]; then
  [ -x "$1/llamafactory-cli" ] && exit
  echo "error: there is no llamafactory-cli in $1; pip install -r requirements.lock there" >&2
  exit 1
fi
[ .venv/.ready -nt requirements.lock ] && exit
if [ -L .venv ]; then
  echo "error: .venv is a link, and what it leads to may be somebody else's: remove the link, or name an environment: BIN=<folder>" >&2
  exit 1
fi
for python in python3.12 python3.11 python3.13 python3 ""; do
  "${python:-false}" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break
done
if [ -z "$python" ]; then
  echo "error: Python 3.11 or newer is needed; install it, or name an environment: BIN=<folder>" >&2
  exit 1
fi
echo "Setting up .venv with $("$python" --version): about 8 GB, some minutes"
"$python" -m venv --clear .venv
# pip would compile the packages on one core, for a minute.
.venv/bin/pip install --quiet --no-compile --require-hashes -r requirements.lock
.venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null 2>&1 || true
touch .venv/.ready
