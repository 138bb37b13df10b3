"""A run's checkpoints: train state, data iterator and metadata, as one step.

MODEL_DIR/checkpoints/<step>/ has four items, written and restored together:
`state` (any pytree of arrays), `fingerprint` (its digests, see `damage`),
`iterator` (the data iterator's state) and `metadata` (model config, package
version, gin text: what a later reader needs to know). The manifest of
all their files is next to them (see `manifests`). Saves are asynchronous,
by all processes together. Orbax writes a step under a temporary name and
renames it when it is complete, so that an interrupted save is never mistaken
for a checkpoint; a damaged step is skipped and the one before is restored.
"""

import base64
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.metadata import step_metadata_serialization

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  contents,
  damage,
  manifests,
  sources,
  streaming,
)
from specialize_jax.files import reading
from specialize_jax.parallel import processes

ITEMS = ("fingerprint", "iterator", "metadata")
"""The items of a step other than `state`; only our checkpoints have them."""

_SCORE = "score"
_FINGERPRINT = "fingerprint"
_STEP_METADATA = "_CHECKPOINT_METADATA"  # Orbax's, next to the items
_WRITTEN_LAST = {_STEP_METADATA: ("commit_timestamp_nsecs",)}
"""Fields that Orbax writes when a save is complete."""

_MAX_LISTED_BYTES = 2**26
"""The largest file that a save reads again for its manifest. Larger ones hold
arrays, which have their own digests; reading them would double a save."""

_JSON_FILE = "metadata"  # of Orbax's JSON items
# A moment in optax's FactoredState, anywhere in a chain of transformations.
_MOMENT = re.compile(r"^(opt_state/.+?)/(v_row|v_col|v)/(.+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """A restored checkpoint.

  Attributes:
    step: the number of completed steps.
    state: the pytree of arrays, with the shardings of the abstract one.
    iterator_state: the state of the data iterator.
    metadata: the metadata that was saved.
  """

  step: int
  state: Any
  iterator_state: bytes
  metadata: dict[str, Any]


class CheckpointManager:
  """Saves and restores the steps of one directory.

  Use it as a context manager, or call `close`, which waits until the last
  asynchronous save is complete.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int | None = 3,
    keep_period: int | None = None,
    keep_best: int = 0,
  ) -> None:
    """Initializes without creating the directory, which the first save does.

    Args:
      directory: the directory of the steps, local or on `gs://`.
      keep: number of newest steps to keep; None for all.
      keep_period: steps that are a multiple of it are kept forever.
      keep_best: number of steps with the highest scores to keep as well.
    """
    self._directory = epath.Path(directory)
    if "://" not in os.fspath(directory):
      self._directory = self._directory.resolve()
    self._keep = keep
    self._keep_period = keep_period
    self._keep_best = keep_best
    self._late_scores: dict[int, float] = {}
    self._opened: ocp.CheckpointManager | None = None
    self._writes = False

  def _manager(self, *, to_write: bool = False) -> ocp.CheckpointManager:
    """Opens Orbax's manager when it is first needed.

    Only a writer may delete incomplete steps: for a reader they may be the save
    in progress of another process.
    """
    if self._opened is None or (to_write and not self._writes):
      self.close()
      self._writes = to_write
      try:
        self._opened = self._new_manager(to_write)
      except Exception as error:
        # Orbax reads its own account of every step, and fails over any.
        unreadable = _unreadable_steps(self._directory)
        if not unreadable or not damage.is_damage(error):
          raise
        raise _UnreadableStepsError(self._directory, unreadable) from error
    return self._opened

  def _new_manager(self, to_write: bool) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._directory,
      item_handlers={
        "state": ocp.PyTreeCheckpointHandler(
          type_handler_registry=streaming.registry()
        ),
        "iterator": ocp.JsonCheckpointHandler(),
        "metadata": ocp.JsonCheckpointHandler(),
        # Last, since it lists the files of the others.
        _FINGERPRINT: _FingerprintHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy(),
        best_fn=_score if self._keep_best else None,
        cleanup_tmp_directories=to_write,
        **({} if to_write else _of_one_process()),
      ),
    )

  def _policy(self) -> checkpoint_managers.PreservationPolicy:
    policies = [checkpoint_managers.LatestN(self._keep)]
    if self._keep_period is not None:
      policies.append(checkpoint_managers.EveryNSteps(self._keep_period))
    if self._keep_best:
      policies.append(_Best(self._keep_best, self._late_scores))
    return checkpoint_managers.AnyPreservationPolicy(policies)

  def __enter__(self) -> "CheckpointManager":
    """Returns itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Waits for saves in progress."""
    self.close()

  def save(
    self,
    step: int,
    state: Any,
    iterator_state: bytes,
    metadata: Mapping[str, Any],
    *,
    score: float | None = None,
  ) -> None:
    """Starts to save a step; the arrays may be donated when it returns.

    A step that exists is kept.

    Args:
      step: the number of completed steps.
      state: pytree of arrays, sharded or not, or of
        `streaming.StreamedArray`s, which are read while they are written.
      iterator_state: the state of the data iterator.
      metadata: JSON-able metadata.
      score: the score for `keep_best`; None, or nan, for none.

    Raises:
      UserError: there is no space left, for this save or the last one.
      OSError: this save or the last one failed.
    """
    with damage.explained(self._directory):
      manager = self._manager(to_write=True)
      if step in self.all_steps():
        return
      scored = score is not None and not math.isnan(score)
      text = base64.b64encode(iterator_state).decode("ascii")
      fingerprint = {
        "state": damage.fingerprint(state) | _streamed_digests(state),
        "iterator": damage.checksum(iterator_state),
        "metadata": damage.checksum(metadata),
        "step": step,
        "manifest": manifests.NAME,
      }
      manager.save(
        step,
        metrics={_SCORE: float(score)} if scored else None,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(state),
          fingerprint=_FingerprintSave(fingerprint),
          iterator=ocp.args.JsonSave({"base64": text}),
          metadata=ocp.args.JsonSave(dict(metadata)),
        ),
        force=True,
      )

  def set_score(self, step: int, score: float | None) -> None:
    """Sets the score of a step that was saved without one; None for none.

    It is not written into the step: a run sets it again when it resumes.
    """
    if score is not None and not math.isnan(score):
      self._late_scores[step] = score

  def restore_newest(self, abstract_state: Any) -> Restored | None:
    """Restores the newest undamaged step.

    All processes of a run must call it, and skip the same steps. Damaged steps
    are renamed (30 to damaged_30), so that they are not restored and do not
    prevent the run from saving their step again.

    Args:
      abstract_state: as in `restore`.

    Returns:
      The checkpoint; None if there are no steps.

    Raises:
      UserError: the steps are of another model, or none can be read.
    """
    passed_over: dict[int, Exception] = {}
    self.set_unreadable_aside()
    for step in reversed(self.all_steps()):
      problem = restored = None
      try:
        restored = self.restore(abstract_state, step)
      except Exception as error:
        if not damage.is_damage(error):
          raise
        problem = error
      if not processes.anywhere(problem is not None):
        self._set_aside(list(passed_over))
        return restored
      passed_over[step] = problem or damage.DamagedError("not on every host")
      logging.warning(
        "The checkpoint of step %d in %s cannot be read: %s: %.300s",
        step,
        self._directory,
        type(passed_over[step]).__name__,
        passed_over[step],
      )
    if not passed_over:
      return None
    step, problem = next(iter(passed_over.items()))
    if isinstance(problem, errors.UserError):
      raise problem  # they are another model's, all of them
    raise errors.UserError(
      f"{self._directory} holds no checkpoint that can be read (step {step}: "
      f"{str(problem)[:300]}): give another MODEL_DIR, or move these away to "
      "begin anew."
    ) from problem

  def set_unreadable_aside(self) -> None:
    """Renames the steps whose list of contents or score is damaged.

    Without it, Orbax can list no step. All processes of a run must call it.
    """
    unreadable = _unreadable_steps(self._directory)
    processes.anywhere(False)  # a barrier: renames follow all reads
    self._set_aside(list(unreadable))

  def _set_aside(self, steps: Sequence[int]) -> None:
    if not steps:
      return
    self.close()  # which forgets the steps that it has seen
    if jax.process_index() == 0:
      for step in steps:
        logging.warning(
          "Passing over step %d, which is damaged: see damaged_%d.", step, step
        )
        aside = self._directory / f"damaged_{step}"
        if aside.exists():
          aside.rmtree()
        (self._directory / str(step)).rename(aside)
    processes.anywhere(False)  # a barrier: reads follow all renames

  def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
    """Restores a step: its state, the iterator's state and the metadata.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` with the shardings of the
        restored arrays, which may differ from those that were saved.
      step: the step; the newest one by default.

    Returns:
      The checkpoint.

    Raises:
      UserError: there is no such step, or it holds another model's arrays.
      FileNotFoundError, ValueError: it is damaged.
    """
    step = self._existing(step)
    state = problem = None
    try:
      self._check_names(step, abstract_state)
      # By the handlers, since the manager's own `restore` ends in a barrier, at
      # which a process that can read waits for one that cannot.
      state = contents.restore(
        self._directory / str(step) / "state", abstract_state
      )
      digests = self._fingerprint(step)["state"]
    except Exception as error:
      problem = error
    # Digests are computed on all devices, so that all processes take part.
    if processes.anywhere(problem is not None):
      raise problem or damage.DamagedError("not on every host")
    damage.check(state, digests)
    iterator_state, metadata = self._check_sums(step)
    logging.info("Restored step %d from %s", step, self._directory)
    return Restored(
      step=step, state=state, iterator_state=iterator_state, metadata=metadata
    )

  def _json(self, step: int, item: str) -> dict[str, Any]:
    return ocp.JsonCheckpointHandler().restore(
      self._directory / str(step) / item, args=ocp.args.JsonRestore()
    )

  def restore_params(
    self,
    abstract_params: Any,
    step: int | None = None,
    *,
    verify: bool = True,
  ) -> Any:
    """Restores the `params` of a step without its optimizer state.

    Args:
      abstract_params: as in `restore`, but of the parameters alone.
      step: the step; the newest one by default.
      verify: whether to compare them with the digests saved with them.

    Returns:
      The parameters.

    Raises:
      UserError: there is no such step, it has the arrays of another model, or
        they are not those that were saved.
    """
    step = self._existing(step)
    wanted = {"params": abstract_params}
    with damage.named(self._where(step)):
      self._check_names(step, wanted, only="params")
      state = contents.restore(
        self._directory / str(step) / "state", wanted, partial_restore=True
      )
      if verify:
        damage.check(state, self.digests(step))
    return state["params"]

  def digests(self, step: int | None = None) -> dict[str, str]:
    """Returns the digests of a step's arrays by name.

    It is empty for steps of a release that did not save digests.

    Raises:
      UserError: the file of the digests is missing or damaged.
    """
    step = self._existing(step)
    with damage.named(self._where(step)):
      if not self._has_fingerprint(step):
        return {}
      digests = self._fingerprint(step)["state"]
      if not isinstance(digests, dict):
        raise damage.DamagedError("its digests are none")
      return digests

  def _has_fingerprint(self, step: int) -> bool:
    """Returns whether a step was saved with digests, even if they are lost."""
    place = self._directory / str(step)
    return (place / _FINGERPRINT).is_dir() or _lists(
      place / _STEP_METADATA, _FINGERPRINT
    )

  def _fingerprint(self, step: int) -> dict[str, Any]:
    """Reads the digests of a step, which include the number of the step."""
    fingerprint = self._json(step, _FINGERPRINT)
    saved_as = fingerprint.get("step", step)  # which early releases lack
    if saved_as != step:
      raise errors.UserError(
        f"{self._where(step)} was saved as step {saved_as} and renamed, or its"
        " files exchanged: give it that name again, or copy it again from where"
        " it is whole."
      )
    return fingerprint

  def check_files(
    self, step: int | None = None, *, only_small: bool = False
  ) -> bool:
    """Compares the files of a step with its manifest; reads no array.

    Args:
      step: the step; the newest one by default.
      only_small: whether of large files only the size is compared.

    Returns:
      Whether there is a manifest, which earlier releases did not save.

    Raises:
      UserError: a file is missing, added, or not what was saved.
    """
    step = self._existing(step)
    place = self._directory / str(step)
    if manifests.check(place, only_small=only_small, is_step=True):
      return True
    with damage.named(self._where(step)):
      if self._has_fingerprint(step) and "manifest" in self._fingerprint(step):
        raise damage.DamagedError(
          f"{manifests.NAME}, which it was saved with, is missing"
        )
    return False

  def verify(
    self,
    step: int | None = None,
    on_array: Callable[[int], None] = lambda num_bytes: None,
  ) -> int:
    """Reads everything of a step, and compares it with its digests.

    Args:
      step: the step; the newest one by default.
      on_array: called with the size in bytes of each array that was read.

    Returns:
      The number of arrays, of the parameters, the optimizer and the rest.

    Raises:
      UserError: something is missing, added, or not what was saved.
    """
    step = self._existing(step)
    self.check_files(step)
    digests = self.digests(step)
    state = self._directory / str(step) / "state"
    with damage.named(self._where(step)):
      self._check_sums(step)
      stored = contents.shapes(contents.saved_tree(state))
      differ = sorted(digests.keys() ^ stored.keys())
      if differ:
        raise damage.DamagedError(
          f"its arrays are not those that were saved: {', '.join(differ[:3])}"
        )
      for name in sorted(stored):
        array = sources.open_zarr(state, key=name.replace("/", "."))
        on_array(sources.compare(array, name, digests[name]))
    return len(digests)

  def _check_sums(self, step: int) -> tuple[bytes, dict[str, Any]]:
    """Returns the iterator's state and the metadata that were saved.

    Raises:
      DamagedError: they are others.
    """
    fingerprint = self._fingerprint(step)
    iterator_state = base64.b64decode(self._json(step, "iterator")["base64"])
    metadata = self._json(step, "metadata")
    for name, content in (("iterator", iterator_state), ("metadata", metadata)):
      _check_sum(name, content, fingerprint)
    return iterator_state, metadata

  def _where(self, step: int) -> str:
    return os.fspath(self._directory / str(step))

  def stored_params(self, step: int | None = None) -> sources.Source:
    """Opens the `params` of a step, to be read one by one.

    Args:
      step: the step; the newest one by default.

    Raises:
      UserError: there is no such step, or it has no `params`.
    """
    step = self._existing(step)
    state = self._directory / str(step) / "state"
    with damage.named(self._where(step)):
      names = contents.shapes(contents.saved_tree(state))
      leaves = {
        name.removeprefix("params/"): sources.open_zarr(
          state, key=name.replace("/", ".")
        )
        for name in names
        if name.startswith("params/")
      }
    if not leaves:
      raise errors.UserError(
        f"{self._directory} holds a checkpoint (step {step}) without params: "
        "give that of a training run."
      )
    return sources.Leaves(os.fspath(self._directory / str(step)), leaves)

  def stored_moments(
    self, step: int | None = None, *, verify: bool = True
  ) -> adafactor_moments.Moments:
    """Opens the second moments of Adafactor of a step, without reading them.

    Args:
      step: the step; the newest one by default.
      verify: whether to compare them, as they are read, with the digests saved
        with them.

    Raises:
      UserError: there is no such step, or its optimizer was not Adafactor.
    """
    step = self._existing(step)
    directory = self._directory / str(step) / "state"
    digests = self.digests(step) if verify else {}
    where = self._where(step)

    def opened(name: str) -> Any:
      array = sources.open_zarr(directory, key=name.replace("/", "."))
      if name not in digests:
        return array
      return sources.VerifiedLeaf(array, where, name, digests[name])

    arrays: dict[str, dict[str, Any]] = {
      kind: {} for kind in adafactor_moments.KINDS
    }
    count = None
    with damage.named(where):
      shapes = contents.shapes(contents.saved_tree(directory))
      lost = sorted(filter(_MOMENT.match, digests.keys() - shapes.keys()))
      if lost:
        raise damage.DamagedError(f"there is no {lost[0]} any more")
      for name in shapes:
        if match := _MOMENT.match(name):
          state, kind, leaf = match.groups()
          count = f"{state}/count"
          arrays[kind][leaf] = opened(name)
      if count is None:
        raise adafactor_moments.NoMomentsError(
          f"{self._directory} holds a checkpoint (step {step}) whose optimizer "
          "was not Adafactor: take its parameters alone."
        )
      num_updates = int(sources.read_leaf(opened(count)))
    return adafactor_moments.OptaxMoments(
      where,
      num_updates,
      arrays,
      {
        name.removeprefix("params/"): shape
        for name, shape in shapes.items()
        if name.startswith("params/")
      },
    )

  def metadata(self, step: int | None = None) -> dict[str, Any]:
    """Reads the metadata of a step.

    Raises:
      UserError: there is no such step, or its metadata are damaged.
    """
    step = self._existing(step)
    with damage.named(self._where(step)):
      metadata = self._json(step, "metadata")
      if self.digests(step):
        _check_sum("metadata", metadata, self._json(step, _FINGERPRINT))
    return metadata

  def latest_step(self) -> int | None:
    """Returns the newest complete step; None if there is none."""
    return max(self.all_steps(), default=None)

  def all_steps(self) -> list[int]:
    """Returns all complete steps, oldest first."""
    if not self._directory.exists():
      return []
    return sorted(self._manager().all_steps())

  def check(self) -> None:
    """Raises the error of a failed asynchronous save, without waiting for any.

    Raises:
      UserError, OSError: as `save`.
    """
    if self._opened is not None:
      with damage.explained(self._directory):
        self._opened.check_for_errors()

  def wait(self) -> None:
    """Waits until the save in progress is complete.

    Raises:
      UserError, OSError: as `save`.
    """
    if self._opened is not None:
      with damage.explained(self._directory):
        self._opened.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in progress and stops the threads."""
    opened, self._opened = self._opened, None
    if opened is not None:
      with damage.explained(self._directory):
        opened.close()

  def _existing(self, step: int | None) -> int:
    steps = self.all_steps()
    if not steps or (step is not None and step not in steps):
      wanted = (
        "a checkpoint" if step is None else f"a checkpoint of step {step}"
      )
      there = ", ".join(map(str, steps)) or "none"
      raise errors.UserError(
        f"{self._directory} does not hold {wanted} (steps there: {there}): "
        "give the checkpoints directory of a run that has saved one."
      )
    return max(steps) if step is None else step

  def _check_names(
    self, step: int, abstract: Any, only: str | None = None
  ) -> None:
    """Raises UserError if the step's arrays are not the expected ones."""
    contents.check_names(
      contents.saved_tree(self._directory / str(step) / "state"),
      abstract,
      only=only,
      where=f"{self._directory} holds a checkpoint (step {step})",
    )


def _of_one_process() -> dict[str, Any]:
  """Returns the options of a manager that waits for no other process.

  Orbax's manager is a barrier of all processes otherwise, even to list steps,
  which some commands do on the first process alone.
  """
  here = jax.process_index()
  return {
    "create": False,
    "multiprocessing_options": ocp.options.MultiprocessingOptions(
      primary_host=here,
      active_processes={here},
      barrier_sync_key_prefix=f"reader_{here}",
    ),
  }


class _UnreadableStepsError(errors.UserError):
  """Steps of which a file is damaged that Orbax reads of every step."""

  def __init__(self, directory: epath.Path, steps: Mapping[int, str]) -> None:
    step, name = next(iter(steps.items()))
    super().__init__(
      f"{directory / str(step)} is damaged (its {name} is not what Orbax"
      " wrote): copy it again from an intact copy, or move it away; a run that"
      " is resumed does so itself."
    )


def listed_steps(directory: epath.Path) -> list[int]:
  """Returns the steps that have a directory, whole or damaged, in any order.

  `CheckpointManager.all_steps` raises an error where one is damaged.

  Args:
    directory: a run's directory of checkpoints, which need not exist.
  """
  if not directory.is_dir():
    return []
  names = (path.name for path in directory.iterdir())
  return [int(name) for name in names if name.isdecimal()]


def _unreadable_steps(directory: epath.Path) -> dict[int, str]:
  """Returns steps that Orbax cannot list, and the damaged file of each.

  Orbax reads its own metadata and the score of every step, to decide whether to
  keep or delete it.
  """
  if not directory.is_dir():
    return {}
  unreadable = {}
  for place in directory.iterdir():
    if not place.name.isdecimal():
      continue
    for name, check in _READ_OF_EVERY_STEP.items():
      if not (place / name).is_file():
        continue
      try:
        check(reading.read_json_description(place / name))
        manifests.check_names(place, [name])
      except Exception as error:
        if not damage.is_damage(error):
          raise
        unreadable[int(place.name)] = name
  return dict(sorted(unreadable.items()))


class _FingerprintHandler(ocp.JsonCheckpointHandler):
  """Writes digests when they are known, and then the step's manifest."""

  async def async_save(
    self, directory: epath.Path, args: "_FingerprintSave"
  ) -> list[ocp.future.Future]:
    """Starts to wait for the digests and to write them."""
    return [
      ocp.future.CommitFutureAwaitingContractedSignals(
        self._write(args.item, directory), name="fingerprint"
      )
    ]

  async def _write(
    self, fingerprint: Mapping[str, Any], directory: epath.Path
  ) -> None:
    if jax.process_index() != 0:
      return
    known = {
      name: digest if isinstance(digest, str) else digest.result()
      for name, digest in fingerprint["state"].items()
    }
    content = json.dumps({**fingerprint, "state": known})
    (directory / _JSON_FILE).write_text(content)

  def finalize(self, directory: epath.Path) -> None:
    """Lists the files of the step, before Orbax gives the step its name.

    All items are written by then; this one, and the metrics that Orbax adds,
    may still have temporary names.

    Args:
      directory: the item's.
    """
    super().finalize(directory)
    listed = manifests.entries(
      directory.parent, without=_WRITTEN_LAST, max_bytes=_MAX_LISTED_BYTES
    )
    manifests.write_entries(
      directory.parent, {_final(name): entry for name, entry in listed.items()}
    )


def _final(name: str) -> str:
  """Returns the name that a file of a step has when the save is complete.

  Example: for `fingerprint.orbax-checkpoint-tmp/metadata` it is
  `fingerprint/metadata`.
  """
  item, slash, rest = name.partition("/")
  return f"{item.partition('.')[0]}/{rest}" if slash else name


@ocp.args.register_with_handler(_FingerprintHandler, for_save=True)
@dataclasses.dataclass
class _FingerprintSave(ocp.args.CheckpointArgs):
  """The arguments of `_FingerprintHandler`: digests or futures of them."""

  item: Mapping[str, Any] = dataclasses.field(repr=False)


@ocp.args.register_with_handler(_FingerprintHandler, for_restore=True)
@dataclasses.dataclass
class _FingerprintRestore(ocp.args.JsonRestore):
  """Required by Orbax; digests are read like any other JSON."""


def _streamed_digests(state: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.digest
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if isinstance(leaf, streaming.StreamedArray)
  }


def _check_sum(
  name: str, content: bytes | Mapping[str, Any], fingerprint: Mapping[str, Any]
) -> None:
  if damage.checksum(content) != fingerprint[name]:
    raise damage.DamagedError(f"the {name} is not the one that was saved")


def _lists(step_metadata: epath.Path, item: str) -> bool:
  """Returns whether a step has an item, according to Orbax's metadata."""
  if not step_metadata.is_file():
    return False
  handlers = reading.read_json_description(step_metadata).get("item_handlers")
  return item in (handlers or {})


@dataclasses.dataclass(frozen=True)
class _Best:
  """Keeps the steps with the highest scores, in a tie the earliest.

  One without a score is not kept. The earliest is that of `selection`, too.
  Orbax's `BestN` knows the scores alone that were saved with a step.
  """

  num_kept: int
  late_scores: Mapping[int, float]

  def should_preserve(
    self,
    checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
    *,
    context: checkpoint_managers.PreservationContext,
  ) -> Sequence[bool]:
    """Returns whether each checkpoint is one of the best."""
    del context
    scores = dict(self.late_scores) | {
      one.step: _score(one.metrics)
      for one in checkpoints
      if one.metrics is not None
    }
    steps = [one.step for one in checkpoints]
    scored = sorted(
      (s for s in steps if s in scores), key=lambda s: (scores[s], -s)
    )
    best = scored[-self.num_kept :]
    return [step in best for step in steps]


def _score(metrics: Mapping[str, float]) -> float:
  return metrics[_SCORE]


_READ_OF_EVERY_STEP: Mapping[str, Callable[[Any], object]] = {
  _STEP_METADATA: step_metadata_serialization.deserialize,
  "metrics/metrics": lambda metrics: math.isnan(_score(metrics)),
}
"""Files that Orbax reads of every step: a call that fails on bad contents."""
