# The image that `specialize launch --on=gke --image=IMAGE` and `--on=xpk` start:
#
#   docker build --tag=REGION-docker.pkg.dev/PROJECT/REPOSITORY/specialize .
#   docker push REGION-docker.pkg.dev/PROJECT/REPOSITORY/specialize
#
# Its packages are those of requirements.lock, on which the suite has passed.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
  PYTHONDONTWRITEBYTECODE=1 \
  TF_CPP_MIN_LOG_LEVEL=3

RUN useradd --create-home --uid=1000 specialize
WORKDIR /opt/specialize

# Before the sources, so that a change of ours installs no package again. The
# lock's libtpu is the compiler of `specialize plan`; on a TPU, jax[tpu] knows
# which one its version runs with.
COPY requirements.lock setup.py README.md ./
COPY specialize_jax/__init__.py specialize_jax/__init__.py
RUN sed '/^libtpu==/d' requirements.lock > constraints.txt \
  && pip install --no-cache-dir --constraint=constraints.txt '.[tpu]' \
  && pip uninstall --yes specialize-jax

COPY specialize_jax specialize_jax
COPY tasks tasks
COPY gin_configs gin_configs
RUN pip install --no-cache-dir --no-deps .

USER 1000
WORKDIR /home/specialize

ENTRYPOINT ["specialize"]
CMD ["--help"]
