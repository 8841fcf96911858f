#!/usr/bin/env bash
# Makes .venv from requirements.lock: every package in its pinned version, checked by its hash. VLLM=1: with vLLM.
#   scripts/setup.sh .venv/bin       Another folder is somebody's own environment, and is only looked at.
set -euo pipefail
lock=requirements${VLLM:+-vllm}.lock
if [ "$1" != .venv/bin ]; then
  [ -x "$1/llamafactory-cli" ] && [ -z "${VLLM:-}" -o -x "$1/vllm" ] && exit
  echo "error: $1 lacks llamafactory-cli${VLLM:+ or vllm}; pip install --no-deps -r $lock there" >&2
  exit 1
fi
# What is installed stands in .venv/.ready. An environment with vLLM does for everything.
for installed in "$lock" requirements-vllm.lock; do
  cmp --silent "$installed" .venv/.ready && exit
done
if ! .venv/bin/python -c "" 2> /dev/null; then
  for python in python3.12 python3.11 python3.13 python3 ""; do
    "${python:-false}" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break
  done
  if [ -z "$python" ]; then
    echo "error: Python 3.11 or newer is needed; install it, or name an environment: BIN=<folder>" >&2
    exit 1
  fi
  if [ -L .venv ]; then
    echo "error: .venv is a link, and what it leads to may be somebody else's: remove the link" >&2
    exit 1
  fi
  "$python" -m venv --clear .venv
fi
echo "Setting up .venv with $(.venv/bin/python --version): about $([ -n "${VLLM:-}" ] && echo 12 || echo 8) GB, a minute or more"
# uv, which stands in the lock, too, installs in a fraction of pip's time. It asks the index that pip is set to.
index=$(.venv/bin/pip config list 2> /dev/null | sed -n "s/^[a-z:]*\.index-url='\(.*\)'$/\1/p" | sed 1q || true)
index=${UV_DEFAULT_INDEX:-$index}
[ -z "$index" ] || export UV_DEFAULT_INDEX=$index
sed -n '/^uv==/,/[^\\]$/p' "$lock" > .venv/uv.lock
with_uv() {
  [ -s .venv/uv.lock ] && .venv/bin/pip install --quiet --no-deps --require-hashes -r .venv/uv.lock || return
  .venv/bin/uv pip install --quiet --python .venv/bin/python --cache-dir .venv/cache --no-deps --require-hashes \
    -r "$lock"
}
# The lock holds all of it. Older pips ask in vain for hashes of extras, such as pydantic[email].
with_uv || .venv/bin/pip install --quiet --no-deps --no-compile --require-hashes -r "$lock"
rm -rf .venv/cache .venv/uv.lock
# Left uncompiled, the packages would make every start twice as slow where Python is told to write no bytecode, as many
# containers do (PYTHONDONTWRITEBYTECODE). Nobody starts their tests.
.venv/bin/python -m compileall -q -j 0 -x '/tests?/' .venv/lib > /dev/null 2>&1 || true
cp "$lock" .venv/.ready
