#!/usr/bin/env bash
# Gradescope runs this once, when it builds the image: a Python of at least 3.11, and what the package needs.
set -euo pipefail
cd "$(dirname "$0")"

suitable() {
  for python in python3.13 python3.12 python3.11 python3; do
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo "$python" && return
  done
  return 1
}

if ! suitable > /dev/null; then
  apt-get update
  apt-get install -y python3.12 python3.12-venv || apt-get install -y python3.11 python3.11-venv
fi
"$(suitable)" -m venv venv
venv/bin/pip install -r requirements.txt
