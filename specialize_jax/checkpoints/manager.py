"""A run's checkpoints: train state, data iterator and metadata, as one step.

MODEL_DIR/checkpoints/<step>/ has four items, written and restored together:
`state` (any pytree of arrays), `fingerprint` (its sums of bits, see `damage`),
`iterator` (where the data stands) and `metadata` (model config, package
version, gin text: what a later reader needs to know). Saves are asynchronous,
by all processes together. Orbax writes a step under a temporary name and
renames it when it is whole, so that what a kill leaves half-written is never
taken for a checkpoint; a damaged one is passed over for the one before.
"""

import base64
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  contents,
  damage,
  sources,
  streaming,
)
from specialize_jax.parallel import processes

_SCORE = "score"
_FINGERPRINT = "fingerprint"
_STEP_METADATA = "_CHECKPOINT_METADATA"  # Orbax's, beside the items
_JSON_FILE = "metadata"  # of Orbax's JSON items
# Of optax's FactoredState, wherever the chain of transformations has it.
_MOMENT = re.compile(r"^(opt_state/.+?)/(v_row|v_col|v)/(.+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """A checkpoint that was read.

  Attributes:
    step: number of completed steps.
    state: the pytree of arrays, where the abstract one says.
    iterator_state: the data iterator's account of where it stands.
    metadata: what was saved as such.
  """

  step: int
  state: Any
  iterator_state: bytes
  metadata: dict[str, Any]


class CheckpointManager:
  """Saves and restores the steps of one directory.

  Use it as a context manager, or call `close`: only then is the last
  asynchronous save sure to be whole.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int | None = 3,
    keep_period: int | None = None,
    keep_best: int = 0,
  ) -> None:
    """Names a directory; only the first save creates it.

    Args:
      directory: where the steps lie; a local path or a `gs://` one.
      keep: how many of the newest steps stay; all of them if None.
      keep_period: steps that are a multiple of it stay forever.
      keep_best: how many of those with the highest score stay too.
    """
    self._directory = epath.Path(directory)
    if "://" not in os.fspath(directory):
      self._directory = self._directory.resolve()
    self._keep = keep
    self._keep_period = keep_period
    self._keep_best = keep_best
    self._opened: ocp.CheckpointManager | None = None
    self._writes = False

  def _manager(self, *, to_write: bool = False) -> ocp.CheckpointManager:
    """Opens Orbax's own manager when it is first needed.

    Only a writer may clear away what a kill has left half-written: to a
    reader it may be another process's save under way.
    """
    if self._opened is None or (to_write and not self._writes):
      self.close()
      self._writes = to_write
      self._opened = ocp.CheckpointManager(
        self._directory,
        item_handlers={
          "state": ocp.PyTreeCheckpointHandler(
            type_handler_registry=streaming.registry()
          ),
          "fingerprint": _FingerprintHandler(),
          "iterator": ocp.JsonCheckpointHandler(),
          "metadata": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          preservation_policy=self._policy(),
          best_fn=_score if self._keep_best else None,
          cleanup_tmp_directories=to_write,
        ),
      )
    return self._opened

  def _policy(self) -> checkpoint_managers.PreservationPolicy:
    policies = [checkpoint_managers.LatestN(self._keep)]
    if self._keep_period is not None:
      policies.append(checkpoint_managers.EveryNSteps(self._keep_period))
    if self._keep_best:
      best = checkpoint_managers.BestN(
        get_metric_fn=_score,
        n=self._keep_best,
        keep_checkpoints_without_metrics=False,
      )
      policies.append(best)
    return checkpoint_managers.AnyPreservationPolicy(policies)

  def __enter__(self) -> "CheckpointManager":
    """Gives itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Waits for the saves under way."""
    self.close()

  def save(
    self,
    step: int,
    state: Any,
    iterator_state: bytes,
    metadata: Mapping[str, Any],
    *,
    score: float | None = None,
    force: bool = False,
  ) -> None:
    """Starts to save a step; the arrays may be donated as soon as it returns.

    Args:
      step: number of completed steps.
      state: pytree of arrays, sharded or not, or of
        `streaming.StreamedArray`s, which are read as they are written.
      iterator_state: the data iterator's own account of where it stands.
      metadata: JSON-able.
      score: what `keep_best` goes by; None, or nan, for a step without one.
      force: saves even where the step exists, which otherwise stays.

    Raises:
      UserError: there is no space left, for this save or the last one.
      OSError: this save or the last one failed.
    """
    with damage.explained(self._directory):
      manager = self._manager(to_write=True)
      if step in self.all_steps():
        if not force:
          return
        manager.delete(step)
      scored = score is not None and not math.isnan(score)
      text = base64.b64encode(iterator_state).decode("ascii")
      fingerprint = {
        "state": damage.fingerprint(state) | _streamed_digests(state),
        "iterator": damage.checksum(iterator_state),
        "metadata": damage.checksum(metadata),
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

  def restore_newest(self, abstract_state: Any) -> Restored | None:
    """Reads the newest step that is whole; passes damaged ones over.

    To be called by all processes of a run: they pass over the same ones. Those
    are then renamed (30 to damaged_30), so that they neither count nor stand
    in the way when the run comes to their step again.

    Args:
      abstract_state: as in `restore`.

    Returns:
      None where there are no steps at all.

    Raises:
      UserError: they are another model's, or none of them can be read.
    """
    passed_over: dict[int, Exception] = {}
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
    processes.anywhere(False)  # nobody looks before it is done

  def restore(self, abstract_state: Any, step: int | None = None) -> Restored:
    """Reads a step: its state, the iterator's state and the metadata.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, on which
        the arrays arrive, whatever mesh they were saved from.
      step: the newest one by default.

    Raises:
      UserError: there is no such step, or it holds another model's arrays.
      FileNotFoundError, ValueError: it is damaged.
    """
    step = self._existing(step)
    self._check_names(step, abstract_state)
    # By the handlers, since the manager's own `restore` ends in a barrier, at
    # which a process that can read waits for one that cannot.
    state = contents.restore(
      self._directory / str(step) / "state", abstract_state
    )
    fingerprint = self._json(step, "fingerprint")
    damage.check(state, fingerprint["state"])
    iterator_state = base64.b64decode(self._json(step, "iterator")["base64"])
    metadata = self._json(step, "metadata")
    for name, content in (("iterator", iterator_state), ("metadata", metadata)):
      _check_sum(name, content, fingerprint)
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
    """Returns the state's `params` alone, without its optimizer.

    Args:
      abstract_params: as in `restore`, of the parameters.
      step: the newest one by default.
      verify: whether they are compared with the digests saved with them.

    Raises:
      UserError: there is no such step, it holds another model's arrays, or
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

    There are none in a step of a release that did not save them.

    Raises:
      UserError: the file that holds them is missing or damaged.
    """
    step = self._existing(step)
    place = self._directory / str(step)
    with damage.named(self._where(step)):
      if not (place / _FINGERPRINT).is_dir() and not _lists(
        place / _STEP_METADATA, _FINGERPRINT
      ):
        return {}
      digests = self._json(step, _FINGERPRINT)["state"]
      if not isinstance(digests, dict):
        raise damage.DamagedError("its digests are none")
      return digests

  def _where(self, step: int) -> str:
    return os.fspath(self._directory / str(step))

  def stored_params(self, step: int | None = None) -> sources.Source:
    """Gives the state's `params` where they lie, to be read one by one.

    Args:
      step: the newest one by default.

    Raises:
      UserError: there is no such step, or it holds no params.
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
    self, step: int | None = None
  ) -> adafactor_moments.Moments:
    """Returns the second moments of a step's Adafactor; reads none yet.

    Args:
      step: the newest one by default.

    Raises:
      UserError: there is no such step, or its optimizer was another.
    """
    step = self._existing(step)
    directory = self._directory / str(step) / "state"
    shapes = contents.shapes(contents.saved_tree(directory))
    arrays: dict[str, dict[str, Any]] = {
      kind: {} for kind in adafactor_moments.KINDS
    }
    count = None
    for name in shapes:
      if match := _MOMENT.match(name):
        state, kind, leaf = match.groups()
        count = f"{state}/count"
        arrays[kind][leaf] = sources.open_zarr(
          directory, key=name.replace("/", ".")
        )
    if count is None:
      raise adafactor_moments.NoMomentsError(
        f"{self._directory} holds a checkpoint (step {step}) whose optimizer "
        "was not Adafactor: take its parameters alone."
      )
    opened = sources.open_zarr(directory, key=count.replace("/", "."))
    return adafactor_moments.OptaxMoments(
      os.fspath(self._directory / str(step)),
      int(sources.read_leaf(opened)),
      arrays,
      {
        name.removeprefix("params/"): shape
        for name, shape in shapes.items()
        if name.startswith("params/")
      },
    )

  def metadata(self, step: int | None = None) -> dict[str, Any]:
    """Returns what `save` was given as metadata.

    Raises:
      UserError: there is no such step, or it is not what was saved.
    """
    step = self._existing(step)
    with damage.named(self._where(step)):
      metadata = self._json(step, "metadata")
      if self.digests(step):
        _check_sum("metadata", metadata, self._json(step, _FINGERPRINT))
    return metadata

  def latest_step(self) -> int | None:
    """The newest whole step, None where there is none."""
    return max(self.all_steps(), default=None)

  def all_steps(self) -> list[int]:
    """All whole steps, oldest first."""
    if not self._directory.exists():
      return []
    return sorted(self._manager().all_steps())

  def check(self) -> None:
    """Raises what an asynchronous save has raised by now; waits for none.

    Raises:
      UserError, OSError: as `save`.
    """
    if self._opened is not None:
      with damage.explained(self._directory):
        self._opened.check_for_errors()

  def wait(self) -> None:
    """Waits until the save under way is whole.

    Raises:
      UserError, OSError: as `save`.
    """
    if self._opened is not None:
      with damage.explained(self._directory):
        self._opened.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees the threads."""
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
    """Raises UserError where the step's arrays are not the wanted ones."""
    contents.check_names(
      contents.saved_tree(self._directory / str(step) / "state"),
      abstract,
      only=only,
      where=f"{self._directory} holds a checkpoint (step {step})",
    )


class _FingerprintHandler(ocp.JsonCheckpointHandler):
  """Writes digests once they are known: of what streams, at its end."""

  async def async_save(
    self, directory: epath.Path, args: "_FingerprintSave"
  ) -> list[ocp.future.Future]:
    """Starts to wait and to write."""
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


@ocp.args.register_with_handler(_FingerprintHandler, for_save=True)
@dataclasses.dataclass
class _FingerprintSave(ocp.args.CheckpointArgs):
  """What `_FingerprintHandler` saves, digests or futures of them."""

  item: Mapping[str, Any] = dataclasses.field(repr=False)


@ocp.args.register_with_handler(_FingerprintHandler, for_restore=True)
@dataclasses.dataclass
class _FingerprintRestore(ocp.args.JsonRestore):
  """Orbax asks for one; digests are read as any JSON."""


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
  """Whether Orbax's own account of a step has an item."""
  if not step_metadata.is_file():
    return False
  handlers = json.loads(step_metadata.read_text()).get("item_handlers")
  return item in (handlers or {})


def _score(metrics: Mapping[str, float]) -> float:
  return metrics[_SCORE]
