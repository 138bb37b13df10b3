"""Steps whose loss or gradient is not finite: remembered, and when it ends."""

from collections.abc import Mapping

from absl import logging

from specialize_jax.training import run_log

FILE = "non_finite.json"


class Skipped:
  """The steps that were skipped one after the other."""

  def __init__(self, max_in_a_row: int) -> None:
    """Takes how many may follow one another."""
    self._max_in_a_row = max_in_a_row
    self._rows: list[dict[str, object]] = []

  def add(
    self,
    step_number: int,
    values: Mapping[str, float],
    example_ids: list[list[str]],
    *,
    log: run_log.RunLog,
  ) -> None:
    """Takes a step's metrics and the examples of each row of its batch.

    Raises:
      FloatingPointError: too many were skipped; `log` has them in a file.
    """
    in_a_row = values["num_skipped_in_a_row"]
    if not in_a_row:
      self._rows.clear()
      return
    logging.warning(
      "Step %d is skipped: its loss is %s, its gradient's norm %s.",
      step_number,
      values["loss"],
      values["gradient_norm"],
    )
    self._rows.append(
      {
        "step": step_number,
        # As text: JSON has no nan.
        "loss": str(values["loss"]),
        "gradient_norm": str(values["gradient_norm"]),
        "example_ids": example_ids,
      }
    )
    if in_a_row > self._max_in_a_row:
      log.write_file(FILE, self._rows)
      raise FloatingPointError(
        f"Step {step_number}: the loss is {values['loss']}, the gradient's "
        f"norm {values['gradient_norm']}; {in_a_row} steps in a row were "
        f"skipped for not being finite. {log.directory / FILE} names the "
        "examples of their batches."
      )
