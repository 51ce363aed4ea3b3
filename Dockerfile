# apdm in a container, for CPUs or for NVIDIA GPUs: docs/container.md.
FROM python:3.12-slim-bookworm

# Where PyTorch comes from: this index has its build for CPUs, https://pypi.org/simple has the one with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What else is installed: the extras of pyproject.toml.
ARG EXTRAS=app,faces

# OpenCV, which the extra faces needs, opens these libraries even where there is no screen.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /data
COPY pyproject.toml constraints.txt README.md LICENSE train_apdm.py ./
# torch alone and first, as in the Makefile. What it needs comes from PyPI with the rest.
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY apdm apdm
COPY configs configs
COPY launch launch
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[$EXTRAS]" && python -m compileall -q apdm

# Any user may run it, so that what it leaves belongs to whoever started it.
RUN mkdir -m 1777 /huggingface outputs && chmod 1777 .
ENV HOME=/tmp USER=apdm HF_HOME=/huggingface
ENTRYPOINT ["apdm"]
CMD ["demo"]
