# The service on a CPU. From the root of the repository:
#     docker build -f containers/cpu.Dockerfile -t detector .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/models:/models:ro" detector /models/best.onnx
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/detector
ENV PATH=/opt/detector/bin:$PATH
# The wheels of torch on PyPI hold CUDA; those of this index do not.
RUN pip install "torch>=2.10,<2.15" "torchvision>=0.25,<0.29.2" --index-url https://download.pytorch.org/whl/cpu
COPY . /source
RUN pip install "/source[export,serve]"

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin detector
COPY --from=build /opt/detector /opt/detector
ENV PATH=/opt/detector/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["detector", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["yolox-nano"]
