"""Records steps whose loss or gradient is not finite, and limits them."""

from collections.abc import Callable, Mapping

from absl import logging

from specialize_jax.training import run_log

FILE = "non_finite.json"


class Skipped:
  """The consecutive steps that have been skipped so far."""

  def __init__(self, max_in_a_row: int) -> None:
    """Sets how many consecutive steps may be skipped."""
    self._max_in_a_row = max_in_a_row
    self._rows: list[dict[str, object]] = []

  def add(
    self,
    step_number: int,
    values: Mapping[str, float],
    example_ids_fn: Callable[[], list[list[str]]],
    *,
    log: run_log.RunLog,
  ) -> None:
    """Records a step if it was skipped, and resets if it was not.

    Args:
      step_number: the step.
      values: its metrics.
      example_ids_fn: returns the ids of the examples of each row of its batch;
        called if it was skipped, by all processes together.
      log: writes `FILE` before the run ends.

    Raises:
      FloatingPointError: more than `max_in_a_row` steps were skipped.
    """
    in_a_row = values["num_skipped_in_a_row"]
    if not in_a_row:
      self._rows.clear()
      return
    logging.warning(
      "Step %d was skipped: its loss is %s, its gradient norm %s.",
      step_number,
      values["loss"],
      values["gradient_norm"],
    )
    self._rows.append(
      {
        "step": step_number,
        # Strings, because JSON has no nan.
        "loss": str(values["loss"]),
        "gradient_norm": str(values["gradient_norm"]),
        "example_ids": example_ids_fn(),
      }
    )
    if in_a_row > self._max_in_a_row:
      log.write_file(FILE, self._rows)
      raise FloatingPointError(
        f"Step {step_number}: the loss is {values['loss']}, the gradient norm "
        f"{values['gradient_norm']}; {in_a_row} steps in a row were skipped "
        f"because they were not finite. {log.directory / FILE} lists the "
        "examples of their batches."
      )
