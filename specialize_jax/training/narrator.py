"""Reports a training run's progress on standard error."""

import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

from specialize_jax.terminal import progress


class Narrator:
  """One progress bar, and a line above it for each event of a run.

  Of several processes only the first may speak: `speaks` is False elsewhere.
  """

  def __init__(
    self,
    num_steps: int,
    *,
    speaks: bool = True,
    stream: TextIO | None = None,
  ) -> None:
    """Sets the last step of the run."""
    self._num_steps = num_steps
    self._speaks = speaks
    self._stream = stream
    self._began = time.monotonic()
    self._bar = self._bar_from(0)

  def facts(self, facts: Mapping[str, str]) -> None:
    """Prints facts about the run, one per line."""
    width = max(map(len, facts))
    for name, text in facts.items():
      self._bar.say(f"{name.ljust(width)}  {text}")

  def starts_after(self, step: int) -> Self:
    """Sets the steps that are done already; returns the context of the bar."""
    self._bar = self._bar_from(step)
    self._began = time.monotonic()
    return self

  def _bar_from(self, step: int) -> progress.Progress:
    return progress.Progress(
      self._num_steps,
      "steps",
      title="training",
      done=step,
      speaks=self._speaks,
      stream=self._stream,
    )

  def __enter__(self) -> Self:
    """Shows the bar."""
    self._bar.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    """Removes the bar."""
    self._bar.__exit__(kind, error, traceback)

  def drops(self, dropped: str) -> None:
    """Prints which examples of the data are not trained on, if any."""
    if dropped:
      self._bar.say(dropped)

  def compiles(self) -> None:
    """Prints that the first step is being compiled, which can take minutes."""
    self._bar.say("compiling the train step")

  def step(self, step: int, *, loss: float, rates: Mapping[str, float]) -> None:
    """Shows a step whose metrics have arrived."""
    detail = f"loss {loss:.4f}"
    if "tokens_per_second" in rates:
      detail += f", {rates['tokens_per_second']:,.0f} tokens/s"
    self._bar.update(step, detail)

  def evaluated(
    self,
    step: int,
    values: Mapping[str, float],
    *,
    seconds: float,
    next_step: int | None,
  ) -> None:
    """Prints an evaluation's accuracies with their intervals."""
    lines = [f"step {step:,}: evaluated in {progress.duration(seconds)}"]
    lines += [f"  {line}" for line in accuracy_lines(values)]
    if next_step is not None:
      lines.append(f"  the next evaluation is at step {next_step:,}")
    self._bar.say("\n".join(lines))

  def saves(self, step: int, directory: os.PathLike[str]) -> None:
    """Prints that a checkpoint is being written."""
    self._bar.say(f"step {step:,}: saving to {directory}/{step}")

  def stopped(self, step: int, reason: str) -> None:
    """Prints why a run ends before its last step, and how to resume it."""
    self._bar.say(
      f"{reason}: saved step {step:,} of {self._num_steps:,}; the same command "
      "goes on from there"
    )

  def finished(self, step: int, best: str) -> None:
    """Prints the run's duration and its best checkpoint."""
    seconds = time.monotonic() - self._began
    self._bar.say(f"finished step {step:,} after {progress.duration(seconds)}")
    self._bar.say(best)


def accuracy_lines(values: Mapping[str, float]) -> Sequence[str]:
  """Formats the values of an evaluation, one line for each task.

  Args:
    values: "TASK/accuracy" with "TASK/low", "TASK/high" and "TASK/n" where
      they are known, and other values by name.

  Returns:
    The lines, without indentation: accuracies and intervals in percent; other
    values as they are.
  """
  shown = []
  used = set()
  for name, value in values.items():
    task, _, kind = name.rpartition("/")
    if kind != "accuracy":
      continue
    used |= {f"{task}/{k}" for k in ("accuracy", "low", "high", "n")}
    used |= {n for n in values if n.startswith(f"{task}/accuracy_")}
    text = f"{100 * value:5.1f} %"
    if f"{task}/low" in values and f"{task}/high" in values:
      low, high = values[f"{task}/low"], values[f"{task}/high"]
      text += f"  [{100 * low:.1f}, {100 * high:.1f}]"
    if f"{task}/n" in values:
      text += f"  of {values[f'{task}/n']:,.0f}"
    shown.append((task, text))
  shown += [(n, f"{value:.4g}") for n, value in values.items() if n not in used]
  width = max((len(name) for name, _ in shown), default=0)
  return [f"{name.ljust(width)}  {text}" for name, text in shown]
