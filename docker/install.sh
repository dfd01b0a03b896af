#!/bin/sh
# Installs the requirements into /opt/sixstream, at the versions of the lock, and drops what nothing reads at run time.
set -eu
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
export PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
python3 -m venv /opt/sixstream
# PIP_ARGS is a list of arguments.
# shellcheck disable=SC2086
/opt/sixstream/bin/pip install ${PIP_ARGS:-} --constraint /tmp/lock.txt --requirement /tmp/requirements.txt
/opt/sixstream/bin/pip uninstall --quiet --yes pip

cd /opt/sixstream/lib/python3*/site-packages
find . -type d \( -name tests -o -path ./torch/test -o -path ./torch/include \) -prune -exec rm -rf {} +
# torch/bin: all but what shares tensors among processes are torch's own tests and build tools.
if [ -d torch/bin ]; then find torch/bin -type f ! -name torch_shm_manager -delete; fi
