# The service on an NVIDIA GPU, with the driver and the NVIDIA Container Toolkit on the host. From the root:
#     docker build -f containers/cuda.Dockerfile -t detector:cuda .
#     docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v "$PWD/models:/models:ro" detector:cuda /models/best.safetensors
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/detector
ENV PATH=/opt/detector/bin:$PATH
# The wheels of torch on PyPI hold CUDA.
COPY . /source
RUN pip install "/source[serve]"

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin detector
COPY --from=build /opt/detector /opt/detector
ENV PATH=/opt/detector/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["detector", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["yolox-nano", "device=cuda"]
