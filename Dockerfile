# One image for every process of the project. Torch comes with CUDA by default; for machines without
# a GPU: --build-arg TORCH_PIP_ARGUMENTS="--index-url ..." with PyTorch's own index of CPU builds.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_PIP_ARGUMENTS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md ./
# PyTorch first and alone: what changes seldom is a layer of its own.
RUN /venv/bin/pip install -c constraints.txt ${TORCH_PIP_ARGUMENTS} $(grep '^torch==' constraints.txt)
COPY flows flows
COPY hqinet hqinet
COPY storage storage
COPY prefect.yaml ./
# Editable: prefect.yaml lies in the root of the checkout, beside the packages.
RUN /venv/bin/pip install -c constraints.txt --editable '.[server]'

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /venv /venv
COPY --from=build /app /app
# Everything that runs writes into the home alone, which is a volume, and into /tmp.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin hqinet \
    && install -d -o hqinet -g hqinet /data /s3
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HQINET_HOME=/data HOME=/tmp
USER 10001:10001
WORKDIR /data
VOLUME /data
ENTRYPOINT []
CMD ["hqinet", "--help"]
