#!/bin/sh
# Write requirements.lock: what the image installs beside torch, each file by its hashes.
# torch has no hashes here: its build (CPU or CUDA) is the image's choice, its version is that of
# constraints.txt, and PyPI's would bring CUDA's libraries along.
set -eu
uv pip compile pyproject.toml --extra local --extra otel --constraint constraints.txt \
    --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
    --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
    --no-emit-package torch --no-emit-package triton \
    $(uv pip compile pyproject.toml --extra local --constraint constraints.txt \
        --python-version 3.11 --python-platform x86_64-unknown-linux-gnu \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet |
        sed -n 's/^\(nvidia-[a-z0-9-]*\|cuda-[a-z]*\).*/--no-emit-package \1/p') \
    --output-file requirements.lock
