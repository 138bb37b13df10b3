"""Downloads models from the Hugging Face hub to its own cache."""

import re

import huggingface_hub
from etils import epath

from specialize_jax import errors

_NAME = re.compile(r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$")
# No pickle where the hub has safetensors, see `download`.
_WEIGHTS = ("*.safetensors", "*.bin")
_TENSORS, _PICKLES = ["*.safetensors", "*.safetensors.index.json"], ["*.bin*"]
_CLIENTS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests")
_OTHERS = ["*.json", "spiece.model", "dataset.yaml"]


def is_name(path: str) -> bool:
  """Returns whether a path has the form OWNER/MODEL or MODEL (t5-base)."""
  return _NAME.match(path) is not None


def _is_of_the_way(error: Exception) -> bool:
  """Returns whether an error is of the hub, the network or the disk.

  The HTTP client's own are no OSErrors, and the client is another one in each
  major version of the hub's package; that of its storage raises RuntimeErrors.
  """
  package = type(error).__module__.partition(".")[0]
  return isinstance(error, OSError | RuntimeError) or package in _CLIENTS


def download(name: str) -> epath.Path:
  """Returns a model's folder in the hub's cache, downloading it if needed.

  Raises:
    UserError: the hub has no such public model, or cannot be reached.
  """
  try:
    folder = huggingface_hub.snapshot_download(
      name, allow_patterns=[*_OTHERS, *_TENSORS]
    )
    if not list(epath.Path(folder).glob("*.safetensors")):
      folder = huggingface_hub.snapshot_download(
        name, allow_patterns=[*_OTHERS, *_PICKLES]
      )
    if not any(list(epath.Path(folder).glob(one)) for one in _WEIGHTS):
      what = f"{name} has neither safetensors nor pytorch_model.bin"
      if huggingface_hub.constants.HF_HUB_OFFLINE:
        what = (
          f"what the Hugging Face hub's cache has of {name}, {folder}, has no"
          " weights: download them without HF_HUB_OFFLINE"
        )
      raise errors.UserError(what)
  except errors.UserError:
    raise
  except Exception as error:
    if not _is_of_the_way(error):
      raise
    raise errors.UserError(
      f"there is no checkpoint directory {name}, and no model of that name "
      f"could be read from the Hugging Face hub ({type(error).__name__}: "
      f"{' '.join(str(error).split())[:200]}): give a folder that exists, or "
      "the name of a model on the hub while the hub can be reached."
    ) from error
  return epath.Path(folder)
