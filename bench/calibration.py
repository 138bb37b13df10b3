"""Measures how certain teachers are: real ones, and the mini world's two.

Any set of records is measured by `teacher.certainty`, which see: a record store
or a JSON file of the paper's released samples. `--mini` adds the mini world's
teachers, sampled here (no world is written). From the repository's root:

  python bench/calibration.py --mini --output=calibration.json \
    --records=$SPECIALIZE_DATA/codex/gsm8k_train_0.json --gold_answer=72

Prints a table with each figure's ratio to code-davinci-002's, and writes JSON;
the status is 1 if a figure of the calibrated teacher is more than 15 % away.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax.cli import gin_files
from specialize_jax.mini import styles, world
from specialize_jax.records import schema, store
from specialize_jax.teacher import certainty

_MARGIN = 0.15
_CALIBRATED = "runs/calibrated.gin"
_SMALL = (
  *("validation_size", "test_size", "general_train_size", "weak_maths_size"),
  *("general_validation_size", "general_test_size"),
  "out_of_distribution_train_size",
)
REAL = "code-davinci-002 (40 samples; right: GSM8K)"


def main(argv: Sequence[str] | None = None) -> int:
  """Measures the teachers that were asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--records", action="append", default=[])
  parser.add_argument(
    "--gold_answer", help="of all records that have none of their own"
  )
  parser.add_argument("--mini", action="store_true")
  parser.add_argument("--num_problems", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=pathlib.Path)
  flags = parser.parse_args(argv)
  if not flags.records and not flags.mini:
    parser.error("give --records, --mini, or both")
  found = {REAL: certainty.CODE_DAVINCI_002}
  for path in flags.records:
    found[path] = certainty.measure(_records(path, flags.gold_answer))
  if flags.mini:
    for style in styles.STYLES:
      found[f"mini, {style}"] = certainty.measure(
        mini_records(style, num_problems=flags.num_problems, seed=flags.seed)
      )
  print(table(found))
  if flags.output:
    written = {name: dataclasses.asdict(one) for name, one in found.items()}
    flags.output.write_text(json.dumps(written, indent=2) + "\n", "utf-8")
  calibrated = found.get("mini, calibrated")
  return int(calibrated is not None and not is_calibrated(calibrated))


def is_calibrated(teacher: certainty.Certainty) -> bool:
  """Returns whether each figure is within 15 % of code-davinci-002's."""
  shares = certainty.ratios(teacher, certainty.CODE_DAVINCI_002)
  return all(abs(share - 1) <= _MARGIN for share in shares.values())


def table(found: Mapping[str, certainty.Certainty]) -> str:
  """Renders the figures, each with its ratio to code-davinci-002's."""
  lines = []
  for name, one in found.items():
    shares = certainty.ratios(one, certainty.CODE_DAVINCI_002)
    lines.append(
      f"{name}: {one.num_records:,} records, {one.num_steps:,} steps"
    )
    for figure, called in certainty.FIGURES.items():
      value = getattr(one, figure)
      if value is not None:
        lines.append(f"  {called:36}{value:7.3f}  x {shares[figure]:.2f}")
  return "\n".join(lines)


def mini_records(
  style: str, *, num_problems: int, seed: int
) -> Iterator[schema.TeacherRecord]:
  """Samples a mini teacher as the world of its gin file does."""
  config = dataclasses.replace(
    world_config(style),
    train_size=num_problems,
    **dict.fromkeys(_SMALL, 10),  # none of it is sampled
  )
  return world.sample_teacher(seed, config)


def world_config(style: str) -> world.WorldConfig:
  """Returns the world in which a style is used."""
  if style == "certain":
    return world.WorldConfig()
  flags = argparse.Namespace(
    gin_file=None, gin_search_paths="", default_gin_file=_CALIBRATED
  )
  with gin_files.loaded(flags, []):
    return gin_files.configured(world.WorldConfig)()


def _records(
  path: str, gold_answer: str | None
) -> Iterator[schema.TeacherRecord]:
  for record in store.read_records(path):
    gold = record.gold_answer or gold_answer or ""
    yield dataclasses.replace(record, gold_answer=gold)


if __name__ == "__main__":
  sys.exit(main())
