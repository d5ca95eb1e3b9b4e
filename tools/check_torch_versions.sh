#!/usr/bin/env bash
# Loads the libraries that are built in the source tree into other versions of torch and checks the ops there.
# Usage: tools/check_torch_versions.sh VERSION...      (environments: build/torch-envs/VERSION, or TORCH_ENVS/VERSION)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
envs=${TORCH_ENVS:-$root/build/torch-envs}
if [ ! -e "$root/python/sturdy/lib/libsturdy_torch.so" ]; then
  echo "nothing is built in $root: run 'make build' first" >&2
  exit 1
fi
for version in "$@"; do
  if [ ! -x "$envs/$version/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$envs/$version"
    "$envs/$version/bin/pip" install -q "torch==$version" numpy
  fi
  PYTHONPATH="$root/python" "$envs/$version/bin/python" "$root/tools/check_torch.py"
done
