#!/bin/sh
# Write what the images install, each file by its hashes: requirements.lock for the whole, beside
# torch, and requirements-gateway.lock for the gateway alone.
# torch has no hashes here: its build (CPU or CUDA) is the image's choice, its version is that of
# constraints.txt, and PyPI's would bring CUDA's libraries along.
set -eu
compile() {
    uv pip compile pyproject.toml --extra otel --extra review --constraint constraints.txt \
        --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet "$@"
}
compile --extra local --generate-hashes --no-emit-package torch --no-emit-package triton \
    $(compile --extra local | sed -n 's/^\(nvidia-[a-z0-9-]*\|cuda-[a-z]*\).*/--no-emit-package \1/p') \
    --output-file requirements.lock
compile --generate-hashes --output-file requirements-gateway.lock
