"""Accuracy with in-context and zero-shot prompts over training steps."""

from collections.abc import Mapping

from specialize_jax.cot import formats
from specialize_jax.evaluation import history as history_lib
from specialize_jax.reports import drawing, plots
from specialize_jax.reports import results as results_lib

# Colors show the kind of prompt, dashes and markers the kind of answer.
_HOW: Mapping[str, tuple[str, str, str, str]] = {
  formats.ZERO_SHOT_CHAIN_OF_THOUGHT.name: (
    "zero-shot, CoT",
    drawing.BLUE,
    "o",
    "-",
  ),
  formats.ZERO_SHOT_ANSWER_ONLY.name: (
    "zero-shot, answer only",
    drawing.BLUE,
    "^",
    "--",
  ),
  formats.IN_CONTEXT_CHAIN_OF_THOUGHT.name: (
    "in-context, CoT",
    drawing.ORANGE,
    "s",
    "-",
  ),
  formats.IN_CONTEXT_ANSWER_ONLY.name: (
    "in-context, answer only",
    drawing.ORANGE,
    "v",
    "--",
  ),
}


def figure(results: results_lib.Results) -> drawing.Drawing | None:
  """Draws the mean accuracy on math in each format that was evaluated.

  Means are over the datasets that were evaluated in all of these formats, so
  that the curves differ in the format only.

  Args:
    results: a loaded results directory.

  Returns:
    The figure, or None if there are fewer than two formats.
  """
  by_format = _datasets_by_format(results)
  if len(by_format) < 2:
    return None
  shared = sorted(set.intersection(*map(set, by_format.values())))
  if not shared:
    return None
  lines = []
  for name, datasets in by_format.items():
    tasks = [datasets[dataset] for dataset in shared]
    lines.append(plots.mean_line(results, tasks, *_HOW[name]))
  lines = [line for line in lines if line.steps]
  if len(lines) < 2:
    return None
  description = (
    "Curves of validation accuracy over steps, in-context and zero-shot."
  )
  with drawing.figure(3.9, description) as (made, svg):
    axes = made.add_subplot()
    plots.accuracy_lines(axes, lines, [])
    plots.mark_selection(axes, results.selection, only_selected=True)
    drawing.legend_below(made, axes)
  return svg()


def _datasets_by_format(
  results: results_lib.Results,
) -> dict[str, dict[str, str]]:
  """Returns the math tasks evaluated over steps, by format and dataset."""
  targets = [results.in_distribution, *results.out_of_distribution]
  wanted = {_parts(task)[0] for task in targets if task}
  found: dict[str, dict[str, str]] = {}
  for name in history_lib.names(results.validation):
    task, _, kind = name.rpartition("/")
    dataset, data_format = _parts(task)
    if kind == "accuracy" and dataset in wanted and data_format:
      found.setdefault(data_format, {})[dataset] = task
  return {name: found[name] for name in _HOW if name in found}


def _parts(task: str) -> tuple[str, str]:
  """Splits "mini_gsm_in_context_answer_only_v1" into dataset and format."""
  name = task.rpartition("_v")[0] or task
  for data_format in _HOW:
    if name.endswith(f"_{data_format}"):
      return name.removesuffix(f"_{data_format}"), data_format
  return name, ""
