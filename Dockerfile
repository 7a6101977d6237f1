# syntax=docker/dockerfile:1
# The gateway and the worker, in one image; or the gateway alone, before a scorer elsewhere.
#
#   docker build -t shieldgate .                                                        CPU
#   docker build -t shieldgate:gpu --build-arg TORCH_INDEX=https://pypi.org/simple .    CUDA
#   docker build -t shieldgate:gateway --target gateway .                               no torch
#
# PyPI's build of torch for Linux carries CUDA's libraries; the driver comes from the host, by way
# of NVIDIA's container toolkit.
# Pin the base by digest where images can be looked up, for all that is built from it:
#   docker buildx imagetools inspect python:3.11-slim --format '{{.Manifest.Digest}}'
#   docker build --build-arg BASE=python:3.11-slim@sha256:... .
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/shieldgate
ENV PATH=/opt/shieldgate/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# From what seldom changes to what often does: torch, the other dependencies, ourselves.
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY policies ./policies
COPY service ./service
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps . && pip check

FROM ${BASE} AS build-gateway
WORKDIR /src
RUN python -m venv /opt/shieldgate
ENV PATH=/opt/shieldgate/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements-gateway.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes --requirement requirements-gateway.lock
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY policies ./policies
COPY service ./service
# Its scorer is elsewhere, so the starter's weights are not for it.
RUN --mount=type=cache,target=/root/.cache/pip \
    rm service/shieldgate/starter/model.safetensors \
    && pip install --no-deps . && pip check

FROM ${BASE} AS base
RUN useradd --system --uid 10001 --create-home shieldgate \
    && install -d -o shieldgate -g shieldgate /models
# Weights from the Hugging Face Hub are kept in /models: mount a volume there.
ENV PATH=/opt/shieldgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models \
    SHIELDGATE_HOST=0.0.0.0 \
    SHIELDGATE_LOG_FORMAT=json
USER 10001
WORKDIR /home/shieldgate
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"SHIELDGATE_PORT\") or 8000}/healthz', timeout=2)"]
ENTRYPOINT ["shieldgate"]
CMD ["serve"]

FROM base AS gateway
COPY --from=build-gateway /opt/shieldgate /opt/shieldgate

FROM base
COPY --from=build /opt/shieldgate /opt/shieldgate
