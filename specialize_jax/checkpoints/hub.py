"""Downloads models from the Hugging Face hub to its own cache."""

import re

import huggingface_hub
from etils import epath
from huggingface_hub import errors as hub_errors

from specialize_jax import errors

_NAME = re.compile(r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$")
# No pickle where the hub has safetensors, see `download`.
_WEIGHTS = ("*.safetensors", "*.bin")
_TENSORS, _PICKLES = ["*.safetensors", "*.safetensors.index.json"], ["*.bin*"]
_OTHERS = ["*.json", "spiece.model", "dataset.yaml"]


def is_name(path: str) -> bool:
  """Returns whether a path has the form OWNER/MODEL or MODEL (t5-base)."""
  return _NAME.match(path) is not None


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
  except (
    hub_errors.HfHubHTTPError,
    hub_errors.HFValidationError,
    hub_errors.LocalEntryNotFoundError,
    hub_errors.OfflineModeIsEnabled,
    OSError,
  ) as error:
    raise errors.UserError(
      f"there is no checkpoint directory {name}, and no model of that name "
      f"could be read from the Hugging Face hub ({type(error).__name__}: "
      f"{' '.join(str(error).split())[:200]}): give a folder that exists, or "
      "the name of a model on the hub while the hub can be reached."
    ) from error
  return epath.Path(folder)
