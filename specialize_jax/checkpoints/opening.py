"""Opens a checkpoint of any of the three kinds and detects which it is.

Every command that reads a checkpoint reads all kinds: ours (a run's model_dir,
its checkpoints directory or one of its steps), a Hugging Face folder or hub
name, and a T5X checkpoint directory. `open_checkpoint` reads only the metadata;
`Checkpoint.params` then restores the parameters onto a mesh.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import optax
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  hub,
  huggingface,
  manager,
  manifests,
  name_table,
  sources,
  t5x,
  tensor_files,
  tokenizers,
)
from specialize_jax.files import fast_tokenizers, paths, reading
from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement
from specialize_jax.t5 import config as t5_config

Kind = Literal["ours", "huggingface", "t5x"]

VOCABULARY_DIR = "vocabulary"
"""The directory of the tokenizer's files, next to a run's checkpoints; in the
metadata of a step, the entries (`manifests.entries`) of these files."""

DATASET = "dataset.yaml"
"""The dataset file that a model was trained with, in the directory of its run
or of a conversion of it."""

_OF_THE_FUNCTION = (
  "mlp_activations",
  "relative_attention_max_distance",
  "layer_norm_epsilon",
  "pad_id",
  "decoder_start_id",
  "eos_ids",
)
"""Fields of the config that change the function but not the shapes."""

ORIGIN = "converted_from"
"""Key in the metadata of a step: the checkpoint it was converted from."""

# An adapter alone has only the second.
_OF_HUGGING_FACE = ("config.json", tensor_files.ADAPTER)

# The endings of the files that are read of a Hugging Face folder.
_OF_FOLDERS = (".json", ".safetensors", ".bin", ".model")
# Of each file of a checkpoint of others, to compare copies.
_NUM_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
_T5X_STEP = re.compile(r"^checkpoint_(\d+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """An opened checkpoint.

  Attributes:
    kind: its kind.
    path: the path as the user gave it, for messages.
    directory: the directory that is read: our checkpoints directory, the
      Hugging Face folder or T5X's `checkpoint_<step>`.
    config: the model. T5X saves no configuration: it is inferred from the
      shapes, with T5's own dropout, epsilon and maximum relative distance.
    step: the number of completed steps; None if it is not known.
    metadata: metadata that our run saved with it; empty for other kinds.
    tokenizer_files: files of the tokenizer next to it.
    generation_config: the content of generation_config.json of a Hugging Face
      folder, or of the one that our checkpoint was converted from.
    source: its tensors, one by one.
    verifies: whether tensors are compared with the digests that were saved with
      them, in our checkpoints and in our exports.
  """

  kind: Kind
  path: str
  directory: epath.Path
  config: t5_config.T5Config
  step: int | None
  metadata: Mapping[str, Any]
  tokenizer_files: tuple[epath.Path, ...]
  generation_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  source: sources.Source = dataclasses.field(repr=False)
  verifies: bool = True

  @property
  def vocabulary_path(self) -> epath.Path | None:
    """The SentencePiece model next to it; None if there is none."""
    found = {file.name: file for file in self.tokenizer_files}
    return found.get(tokenizers.SENTENCEPIECE)

  @property
  def is_ours(self) -> bool:
    """Whether we wrote it, and so its tokenizer: our run's, or our export."""
    return self.kind == "ours" or (self.directory / manifests.NAME).is_file()

  def sampled_digest(self) -> str:
    """Returns a digest of sizes and samples of the files of parameters.

    Copies of one model have the same; those of two trainings, or of two
    revisions, differ in nearly every tensor. Of a checkpoint of ours, which has
    digests of all tensors, and of one in a bucket it is the fingerprint.
    """
    if self.kind == "ours" or paths.is_in_bucket(self.directory):
      return self.fingerprint()
    digest = hashlib.sha256()
    folder = self.kind == "huggingface"
    written = sorted(_written(self.directory, folder=folder))
    if folder:
      names = [name for name, *_ in written]
      read = {name for name in names if name.endswith(".safetensors")}
      read = read or {name for name in names if name.startswith("pytorch")}
      read.add("config.json")
      written = [one for one in written if one[0] in read]
    for name, size, *_ in written:
      digest.update(f"{name} {size}\n".encode())
      step = max(1, -(-(size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1)))
      with open(self.directory / name, "rb") as stream:
        for begin in range(0, max(1, size - _SAMPLE_BYTES + step), step):
          stream.seek(min(begin, max(0, size - _SAMPLE_BYTES)))
          digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()

  def fingerprint(self) -> str:
    """Returns a string that no other checkpoint has, also a later one here.

    A copy of one of our checkpoints has the same fingerprint, since Orbax saves
    in it the nanoseconds at which it was begun and finished, and a copy of one
    of our exports, whose manifest has every file's checksum. For other kinds it
    is computed from the names, sizes and times of the files that are read.
    """
    directory = self.directory
    if self.kind == "ours":
      directory = directory / str(self.step)
    known = fingerprint_of_ours(directory)
    if known is not None:
      return known
    files = sorted(_written(directory, folder=self.kind == "huggingface"))
    return hashlib.sha256(repr(files).encode()).hexdigest()

  def moments(self) -> adafactor_moments.Moments:
    """Opens the second moments of Adafactor, without reading them.

    Raises:
      UserError: it has no optimizer state, or that of another optimizer.
    """
    match self.kind:
      case "ours":
        with manager.CheckpointManager(self.directory, keep=None) as steps:
          return steps.stored_moments(self.step, verify=self.verifies)
      case "t5x":
        return t5x.Checkpoint(self.directory).moments()
    raise adafactor_moments.NoMomentsError(
      f"{self.path} is a {self.kind} folder, which has no optimizer's state."
    )

  def params(
    self,
    placed: placement.Placement | None = None,
    config: t5_config.T5Config | None = None,
  ) -> optax.Params:
    """Restores the parameters onto a mesh, leaf by leaf.

    Args:
      placed: the mesh; by default all devices, with replicated parameters.
      config: the model that they must fit, with its `param_dtype` and
        `scan_layers`; the checkpoint's own by default.

    Raises:
      UserError: the checkpoint is of another model, or is not what was saved.
    """
    config = config or self.config
    placed = placed or placement.Placement(mesh=meshes.make_mesh())
    self._check_function(config)
    self.check_files()
    abstract = name_table.abstract_params(config, placed)
    if self.kind == "ours" and _layout(config) == _layout(self.config):
      # Orbax reads of each array only what this host's devices hold.
      with manager.CheckpointManager(self.directory, keep=None) as steps:
        return steps.restore_params(abstract, self.step, verify=self.verifies)
    logging.info("Reading %s (%s)", self.path, self.kind)
    return name_table.assemble(
      config,
      self.source,
      shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )

  def check_fits(self, config: t5_config.T5Config) -> None:
    """Checks, without reading an array, that `params` can restore a model.

    Args:
      config: the model.

    Raises:
      UserError: the checkpoint is of another model, or lacks files.
    """
    self._check_function(config)
    self.check_files()
    name_table.check(config, self.source)

  def check_vocabulary(
    self, file: str | os.PathLike, name: str, way_out: str
  ) -> None:
    """Checks that a vocabulary is the one next to the checkpoint.

    A checkpoint without a tokenizer has none to compare with. Of others'
    folders the ids alone are compared: T5's vocabulary is published in several
    files.

    Args:
      file: a SentencePiece model, or a `tokenizer.json`.
      name: the flag or task that it is of, for the message.
      way_out: what to do instead, for the message.

    Raises:
      UserError: the checkpoint has another one.
    """
    found = {one.name: one for one in self.tokenizer_files}
    own, whole = self.vocabulary_path, found.get(tokenizers.WHOLE)
    if not self.verifies or (own is None and whole is None):
      return
    content = reading.read_bytes(file)
    if epath.Path(file).suffix == ".json":
      own = own or whole
      is_same = tokenizers.is_whole_of(epath.Path(file), own)
    elif own is None:
      own = whole
      is_same = tokenizers.is_in_whole(content, whole)
    elif self.is_ours:
      is_same = tokenizers.are_same(content, own.read_bytes())
    else:
      is_same = tokenizers.have_same_ids(content, own.read_bytes())
    if not is_same:
      raise errors.UserError(
        f"the vocabulary of {name}, {os.fspath(file)}, is not the one that"
        f" {self.path} was trained with, {os.fspath(own)}, so that ids would"
        f" mean other words: {way_out}"
      )
    added = fast_tokenizers.added_tokens(whole) if whole else []
    if added:
      logging.warning(
        "%s adds %s to the pieces of %s, which tasks encode with: inputs that"
        " have them are tokenized to other pieces, and outputs never have"
        " them.",
        whole,
        ", ".join(map(repr, added[:5])),
        file,
      )

  def check_files(self) -> None:
    """Compares the files of an export with its manifest, before any is read.

    Raises:
      UserError: one is missing, added or not what was written.
    """
    if self.verifies and self.kind != "ours":
      manifests.check(self.directory)

  def verify(
    self,
    *,
    only_params: bool = False,
    on_array: Callable[[int], None] = lambda num_bytes: None,
  ) -> "Verified":
    """Reads the whole checkpoint and compares it with what was saved.

    In ours these are all arrays (the optimizer's too), the state of the data
    iterator, and all files; in an export all files and all tensors.

    Args:
      only_params: whether to read no array but the parameters.
      on_array: called with the size in bytes of each array that was read.

    Returns:
      What was compared, and what could not be.

    Raises:
      UserError: there are no digests, or something is not what was saved.
    """
    if not self.has_digests:
      raise errors.UserError(
        f"{self.path} has no digests to compare it with: those of a release "
        "that saved none, of T5X itself and of others' Hugging Face folders "
        "cannot be verified."
      )
    self.check_files()
    name_table.check(self.config, self.source)
    if self.kind == "ours" and not only_params:
      return self._verify_ours(on_array)
    names = [tensor.name for tensor in name_table.tensors(self.config)]
    for name in names:
      on_array(self.source.read(name).nbytes)
    return Verified(
      num_arrays=len(names),
      unverified=tuple(manifests.unlisted(self.directory)),
    )

  def _verify_ours(self, on_array: Callable[[int], None]) -> "Verified":
    place = self.directory / str(self.step)
    unverified = manifests.unlisted(place)
    with manager.CheckpointManager(self.directory, keep=None) as steps:
      num_arrays = steps.verify(self.step, on_array)
    if not (place / manifests.NAME).exists():  # a lost one was refused
      unverified.append(
        "the descriptions of the arrays, since the release that saved them"
        f" wrote no {manifests.NAME}"
      )
    listed = _listed_vocabulary(self.metadata)
    kept = [file for file in self.tokenizer_files if file.name not in listed]
    dataset = dataset_file(self)
    if dataset is not None:
      kept.append(dataset)
    unverified += [
      f"{os.fspath(file)}, beside which is no {manifests.NAME}"
      for file in kept
      if not (file.parent / manifests.NAME).is_file()
    ]
    if listed and not self.tokenizer_files:
      unverified.append(f"{VOCABULARY_DIR}/, which does not lie beside it")
    return Verified(num_arrays=num_arrays, unverified=tuple(unverified))

  @property
  def has_digests(self) -> bool:
    """Whether digests were saved with it, and are compared."""
    if self.kind == "ours":
      return isinstance(self.source, sources.Verified) and bool(
        self.source.digests
      )
    return (self.directory / manifests.NAME).exists()

  def _check_function(self, config: t5_config.T5Config) -> None:
    if self.kind == "t5x":  # which saves none of these
      return
    for name in _OF_THE_FUNCTION:
      said, wanted = getattr(self.config, name), getattr(config, name)
      if said != wanted:
        raise errors.UserError(
          f"{self.path} is of a model whose T5Config.{name} is {said!r}, and "
          f"the one configured has {wanted!r}: give"
          f' --gin.T5Config.{name}="{said!r}", or another checkpoint.'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
  """What `Checkpoint.verify` has compared.

  Attributes:
    num_arrays: number of arrays that are what was saved.
    unverified: what could not be compared: files that are neither in a manifest
      nor read, or parts for which an earlier release saved no digests.
  """

  num_arrays: int
  unverified: tuple[str, ...]


def _written(
  directory: epath.Path, *, folder: bool
) -> Iterator[tuple[object, ...]]:
  """Yields name, size and times of the files of a checkpoint.

  Of a local file they are in nanoseconds, with the time of its last change,
  which a copy cannot set, as it can that of its content.

  Args:
    directory: the checkpoint.
    folder: whether it is a folder of Hugging Face's, in which people store
      other files, too, such as what was decoded with it.
  """
  for place, _, names in directory.walk():
    for name in names:
      if folder and (place != directory or not name.endswith(_OF_FOLDERS)):
        continue
      file = place / name
      shown = file.relative_to(directory).as_posix()
      if paths.is_in_bucket(file):
        found = file.stat()
        yield shown, found.length, found.mtime
      else:
        found = os.stat(file)
        yield shown, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _layout(config: t5_config.T5Config) -> tuple[bool, int, str, str]:
  """Returns the fields that only change how parameters are stored."""
  return (
    config.scan_layers,
    config.vocab_size,
    config.param_dtype,
    config.relative_bias,
  )


def fingerprint_of_ours(directory: epath.Path) -> str | None:
  """Returns the fingerprint of a step of ours, or of an export; None of others.

  See `Checkpoint.fingerprint`; nothing else of the checkpoint is read.
  """
  for written in ("_CHECKPOINT_METADATA", manifests.NAME):
    if (directory / written).is_file():
      content = (directory / written).read_bytes()
      return hashlib.sha256(content).hexdigest()
  return None


def open_checkpoint(
  path: str | os.PathLike, *, verify: bool = True
) -> Checkpoint:
  """Opens a checkpoint of any kind, without reading parameters.

  Args:
    path: ours (model_dir, checkpoints directory or step; the newest step
      unless one is named) or T5X's (model_dir or `checkpoint_<step>`), local or
      on `gs://`; a Hugging Face folder; or, if `path` does not exist, a name
      on the Hugging Face hub, such as google/flan-t5-xl.
    verify: whether tensors are compared with the digests that were saved with
      them; a warning is logged if they are not.

  Raises:
    UserError: there is no checkpoint, or it is not of a T5.
  """
  given = os.fspath(path)
  directory = epath.Path(given)
  if not directory.exists() and hub.is_name(given):
    directory = hub.download(given)
  kind = _kind_in(directory)
  opener = {"ours": _open_ours, "t5x": _open_t5x, "huggingface": _open_folder}
  if not verify:
    logging.warning("%s is not verified, as asked", given)
  opened = opener[kind](given, directory, verify)
  return dataclasses.replace(opened, verifies=verify)


def dataset_file(checkpoint: Checkpoint) -> epath.Path | None:
  """Returns the dataset file that a checkpoint's run kept; None if none.

  Raises:
    UserError: it is not the one that was kept.
  """
  places = [checkpoint.directory]
  if checkpoint.kind == "ours":
    run = checkpoint.directory.parent
    # MODEL_DIR/best/checkpoints is a level deeper than MODEL_DIR/checkpoints.
    is_within_run = (run.parent / "checkpoints").is_dir()
    places = [run, run.parent] if is_within_run else [run]
  for place in places:
    if (place / DATASET).is_file():
      if checkpoint.verifies:
        manifests.check_names(place, [DATASET])
      return place / DATASET
  return None


def kind_of(path: str | os.PathLike) -> Kind:
  """Detects the kind of a checkpoint by the names of its files.

  Raises:
    UserError: there is nothing at `path`, or no checkpoint.
  """
  given = os.fspath(path)
  directory = epath.Path(given)
  if not directory.exists() and hub.is_name(given):
    return "huggingface"
  return _kind_in(directory)


def _kind_in(directory: epath.Path) -> Kind:
  if not directory.is_dir():
    if directory.name.isdecimal() and directory.parent.is_dir():
      return "ours"  # A missing step, which opening it will name.
    raise errors.UserError(
      f"there is no checkpoint directory {os.fspath(directory)}: expected a "
      "run's model_dir, its checkpoints directory or one of the steps in it, a "
      "Hugging Face folder, or a T5X checkpoint directory."
    )
  for name in (t5x.INDEX, *_OF_HUGGING_FACE):
    if (directory / name).is_file() and not _is_left_over(directory, name):
      _check_no_run(directory, name)
      return "t5x" if name == t5x.INDEX else "huggingface"
  if _is_t5x(directory):
    return "t5x"
  # T5X's model_dir may be called "checkpoints" or 2024, as ours are.
  if _t5x_steps(directory) and not (directory / "checkpoints").is_dir():
    return "t5x"
  if _our_directory(directory) is not None:
    return "ours"
  raise errors.UserError(
    f"{os.fspath(directory)} holds no checkpoint: neither the steps of a run, "
    "nor a Hugging Face config.json, nor a T5X checkpoint (a file called "
    f"'checkpoint', or a 'state' that Orbax wrote){_folders_in(directory)}."
  )


def _is_left_over(directory: epath.Path, name: str) -> bool:
  """Returns whether TensorFlow's list of checkpoints lies in another's folder.

  As where the folder that a checkpoint was converted from has the result too.
  """
  return (
    name == t5x.INDEX
    and (directory / "config.json").is_file()
    and (directory / name).read_bytes().startswith(t5x.OF_TENSORFLOW)
  )


def _check_no_run(directory: epath.Path, name: str) -> None:
  """Checks that the folder of another kind of checkpoint is not also a run's.

  Raises:
    UserError: it has steps of a run as well.
  """
  steps = directory / "checkpoints"
  if steps.is_dir() and any(
    (step / item).is_dir()
    for step in steps.iterdir()
    if step.name.isdecimal()
    for item in manager.ITEMS
  ):
    raise errors.UserError(
      f"{os.fspath(directory)} holds two checkpoints, a run's and one that"
      f" {name} describes: give {os.fspath(steps)}, or move {name} away."
    )


def _folders_in(directory: epath.Path) -> str:
  """Names the Hugging Face folders in a directory, as a trainer writes them."""
  found = sorted(
    os.fspath(path.parent)
    for pattern in ("*/config.json", "snapshots/*/config.json")
    for path in directory.glob(pattern)
  )
  return f"; give one of {', '.join(found[:3])}" if found else ""


def _open_ours(path: str, given: epath.Path, verify: bool) -> Checkpoint:
  directory, step = _our_directory(given)
  with manager.CheckpointManager(directory, keep=None) as steps:
    step = steps.latest_step() if step is None else step
    if verify:
      steps.check_files(step, only_small=True)
    metadata = steps.metadata(step)
    source = steps.stored_params(step)
    digests = {
      name.removeprefix("params/"): digest
      for name, digest in steps.digests(step).items()
      if name.startswith("params/")
    }
  if verify and not digests:
    logging.warning(
      "%s is not verified: it was saved without digests of its parameters, so "
      "that damage to them could not be noticed: convert it to have them",
      os.fspath(directory / str(step)),
    )
  vocabulary_dir = directory.parent / VOCABULARY_DIR
  if verify:
    if vocabulary_dir.is_dir():  # a step may have been copied without it
      manifests.check_listed(vocabulary_dir, _listed_vocabulary(metadata))
      manifests.check(vocabulary_dir)
    source = sources.Verified(source, digests)
  return Checkpoint(
    kind="ours",
    path=path,
    directory=directory,
    config=_config_of(metadata, f"{directory}/{step}"),
    step=step,
    metadata=metadata,
    tokenizer_files=_tokenizer_files(vocabulary_dir),
    generation_config=metadata.get(ORIGIN, {}).get("generation_config", {}),
    source=source,
  )


def _config_of(metadata: Mapping[str, Any], where: str) -> t5_config.T5Config:
  """Returns the configuration that a step was saved with.

  Raises:
    UserError: it was saved by a release with other fields.
  """
  saved = metadata.get("model")
  known = {field.name for field in dataclasses.fields(t5_config.T5Config)}
  unknown = sorted(set(saved) - known) if isinstance(saved, dict) else ["model"]
  if unknown:
    by = metadata.get("version") or "of an unknown version"
    raise errors.UserError(
      f"{where} was saved by specialize-jax {by}, and this one does not know"
      f" its {', '.join(unknown)}: install that version or a newer one"
    )
  return t5_config.T5Config(**saved)


def _open_folder(path: str, directory: epath.Path, verify: bool) -> Checkpoint:
  if paths.is_in_bucket(directory):
    raise errors.UserError(
      f"{path} is a Hugging Face folder in a bucket, and its tensors are read"
      " from a disk: copy it with `gcloud storage cp -r`, or give its name on"
      " the hub."
    )
  is_listed = verify and manifests.check(directory, only_small=True)
  folder = huggingface.Folder(directory)
  if verify and not is_listed and folder.manifest:
    logging.warning(
      "%s is not verified: %s, which it was written with, is missing",
      path,
      folder.manifest,
    )
  return Checkpoint(
    kind="huggingface",
    path=path,
    directory=directory,
    config=folder.config,
    step=None,
    metadata={},
    tokenizer_files=_tokenizer_files(directory),
    generation_config=folder.generation_config,
    source=folder,
  )


def _open_t5x(path: str, directory: epath.Path, verify: bool) -> Checkpoint:
  directory = t5x_directory(directory)
  is_listed = verify and manifests.check(directory, only_small=True)
  checkpoint = t5x.Checkpoint(directory)
  if verify and not is_listed:
    logging.warning(
      "%s is not verified: %s",
      path,
      f"{checkpoint.manifest}, which it was written with, is missing"
      if checkpoint.manifest
      else "T5X saves no digests, so that only what cannot be read is noticed",
    )
  named = _T5X_STEP.match(directory.name)
  return Checkpoint(
    kind="t5x",
    path=path,
    directory=directory,
    config=checkpoint.config,
    step=int(named.group(1)) if named else None,
    metadata={},
    tokenizer_files=(),
    source=checkpoint,
  )


def _listed_vocabulary(
  metadata: Mapping[str, Any],
) -> Mapping[str, Mapping[str, Any]]:
  """Returns the entries (`manifests`) of the vocabulary of a step; or none."""
  return metadata.get(
    VOCABULARY_DIR, metadata.get(ORIGIN, {}).get("vocabulary", {})
  )


def _our_directory(path: epath.Path) -> tuple[epath.Path, int | None] | None:
  """Returns the checkpoints directory of a path, and the step, if any.

  Example: for `runs/a`, `runs/a/checkpoints` and `runs/a/checkpoints/500` it is
  `runs/a/checkpoints`, for the last one with step 500. None if it is not a run.
  """
  if (path / "checkpoints").is_dir():
    return path / "checkpoints", None
  if path.name.isdecimal() and _may_be_step(path):
    return path.parent, int(path.name)
  if path.name == "checkpoints" or any(
    child.name.isdecimal() and _may_be_step(child) for child in path.iterdir()
  ):
    return path, None
  return None


def _may_be_step(path: epath.Path) -> bool:
  """Returns whether a directory is a step of ours, whole, damaged or missing.

  Others number theirs as well: Orbax's own have an item `default`, and a
  trainer may have written Hugging Face folders.
  """
  if not path.is_dir():
    return not path.exists()
  names = {child.name for child in path.iterdir()}
  return not names or not names.isdisjoint((*manager.ITEMS, "state"))


def _is_t5x(directory: epath.Path) -> bool:
  """Returns whether it is one T5X checkpoint, and not a step of our run."""
  # A step that lacks one of its items is damaged, and still ours.
  places = [directory]
  if directory.name in manager.ITEMS:
    places.append(directory.parent)
  ours = any(
    (place / item).exists() for place in places for item in manager.ITEMS
  )
  return not ours and t5x.item(directory) is not None


def t5x_directory(directory: epath.Path) -> epath.Path:
  """Returns the `checkpoint_<step>` directory that is read for a path.

  Args:
    directory: a T5X checkpoint, or the model_dir of a T5X run.

  Returns:
    The checkpoint itself, or the newest of the run. Unfinished ones, as a
    killed run leaves them in a bucket, are skipped with a warning.
  """
  if _is_t5x(directory):
    return directory
  steps = [directory / f"checkpoint_{n}" for n in _t5x_steps(directory)]
  for step in steps:
    if t5x.item(step) is not None:
      return step
    logging.warning("%s was never finished and is skipped", os.fspath(step))
  if not steps:
    raise errors.UserError(
      f"{os.fspath(directory)} holds no checkpoint of T5X's: expected a"
      " checkpoint_STEP directory, or the model_dir that has some"
    )
  return steps[0]


def _t5x_steps(directory: epath.Path) -> list[int]:
  """Returns the steps of T5X's checkpoints in a directory, newest first."""
  matches = (_T5X_STEP.match(child.name) for child in directory.iterdir())
  return sorted((int(m.group(1)) for m in matches if m), reverse=True)


def _tokenizer_files(directory: epath.Path) -> tuple[epath.Path, ...]:
  files = (directory / name for name in tokenizers.FILES)
  return tuple(file for file in files if file.is_file())
