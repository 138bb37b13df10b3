"""Compares how certain a teacher is with the paper's teacher, in a table."""

import dataclasses
from collections.abc import Mapping

from specialize_jax.reports import blocks
from specialize_jax.teacher import certainty

Json = Mapping[str, object]


def blocks_of(measured: Json) -> list[blocks.Block]:
  """Renders `certainty.json`, the fields of `certainty.Certainty`, as blocks.

  Args:
    measured: the content of the file.
  """
  fields = (field.name for field in dataclasses.fields(certainty.Certainty))
  teacher = certainty.Certainty(**{name: measured[name] for name in fields})
  real = certainty.CODE_DAVINCI_002
  shares = certainty.ratios(teacher, real)
  rows = [
    blocks.Row(
      [
        called,
        _figure(getattr(teacher, name)),
        _figure(getattr(real, name)),
        f"{shares[name]:.2f}" if name in shares else "",
      ]
    )
    for name, called in certainty.FIGURES.items()
  ]
  return [
    blocks.Text(
      "A teacher's distributions can teach more than its samples where it is "
      "uncertain. This teacher, by "
      f"{teacher.num_records:,} records of {teacher.num_steps:,} tokens, "
      "beside the paper's, code-davinci-002, by the same measure over the "
      f"{real.num_records} samples of one GSM8K question that the paper's "
      "authors released; its share of right answers is its accuracy on GSM8K."
    ),
    blocks.Table(
      head=("", "this teacher", "code-davinci-002", "ratio"), rows=rows
    ),
  ]


def _figure(value: float | None) -> str:
  return "" if value is None else f"{value:.3f}"
