"""Describes the findings of a study in sentences and tables.

Every verdict is computed from `study.json` (see `study.findings`); findings
that do not appear are reported as such.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.evaluation import intervals
from specialize_jax.files import reading, writing
from specialize_jax.reports import tables
from specialize_jax.study import curves

Json = Mapping[str, object]

APPEARS, PARTLY, ABSENT = "appears", "appears in part", "does not appear"
NOT_RUN = "was not run"
ROLES = {
  "in_distribution": "in distribution",
  "out_of_distribution": "out of distribution",
  "general_chain_of_thought": "general, CoT",
  "general_answer_only": "general, answer only",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One of the paper's findings.

  Attributes:
    name: short name, also used as an anchor.
    claim: the paper's claim.
    sentences: the result.
    table: a head and rows of cells.
    verdict: `APPEARS`, `PARTLY`, `ABSENT` or `NOT_RUN`, by its tests.
    tests: its registered tests, as a head and rows of cells.
  """

  name: str
  claim: str
  sentences: Sequence[str]
  table: Sequence[Sequence[str]]
  verdict: str = NOT_RUN
  tests: Sequence[Sequence[str]] = ()


def load(path: str | pathlib.Path) -> Json:
  """Reads a `study.json`.

  Raises:
    UserError: the file does not exist or is not a study.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(
      f"there is no {path}: expected the study.json that `specialize demo "
      "--study` writes when it is done."
    )
  study = reading.read_json(path)
  if not isinstance(study, dict) or "gain_and_price" not in study:
    raise errors.UserError(f"{path} is not what a study writes.")
  if "starts" not in study:
    raise errors.UserError(
      f"{path} was written by an earlier release: `specialize demo --study` in "
      "its directory writes it anew."
    )
  return study


def findings(study: Json) -> list[Finding]:
  """Returns the findings, each with the verdict of its registered tests."""
  found = [
    _gain_and_price(study["gain_and_price"]),
    _matching(study["matching"]),
    _formats(study["formats"]),
    _selection(study["selection"]),
    _scaling(study["scaling"]),
    _starts(study["starts"]),
  ]
  return [_judged(finding, study["tests"]) for finding in found]


def _judged(finding: Finding, tests: Sequence[Json]) -> Finding:
  """Returns a finding with the verdict and the table of its tests."""
  mine = [test for test in tests if test["finding"] == finding.name]
  run = [test for test in mine if test["interval"]]
  held = [test["interval"]["low"] > 0 for test in run]
  verdict = NOT_RUN
  if run:
    missing = [False] * (len(mine) - len(run))
    verdict = _verdict([*held, *missing])
  return dataclasses.replace(
    finding,
    verdict=verdict,
    tests=[
      ["registered test: positive if the claim is true", "", "holds"],
      *(
        [
          f"{_sentence(test['name'])}, {test['unit']}",
          _statistic(test),
          "yes" if test in run and test["interval"]["low"] > 0 else "no",
        ]
        for test in mine
      ),
    ],
  )


def _statistic(test: Json) -> str:
  if not test["interval"]:
    return "no interval: not run, one seed, or a seed without the statistic"
  interval = _interval(test["interval"])
  if test["unit"] == "points":
    return (
      f"{tables.points(interval.estimate)} {tables.interval_text(interval)}"
    )
  text = f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
  return text.replace("-", "\u2212")


def lead(study: Json) -> str:
  """Summarizes the study and its number of findings in two sentences."""
  found = findings(study)
  verdicts = (APPEARS, PARTLY, NOT_RUN)
  counts = [sum(f.verdict == v for f in found) for v in verdicts]
  hours = study["cost"]["cpu_seconds"] / 3600
  return (
    f"{len(study['seeds'])} seeds, each with a world of its own, a student of "
    f"{study['num_params']:,} parameters and {hours:.1f} hours of one core in "
    f"all. Of {len(found)} findings of the paper {counts[0]} appear, "
    f"{counts[1]} in part and {len(found) - sum(counts)} do not"
    + (f"; {counts[2]} was not run." if counts[2] else ".")
  )


def terminal(study: Json) -> str:
  """Renders verdicts and sentences for a terminal."""
  lines = [lead(study)]
  for number, finding in enumerate(findings(study), start=1):
    lines.append(f"{number}. {finding.name}: {finding.verdict}")
    lines += [f"   {sentence}" for sentence in finding.sentences]
    lines += [
      f"   {name}: {statistic} ({'holds' if holds == 'yes' else 'does not'})"
      for name, statistic, holds in finding.tests[1:]
    ]
  return writing.visible("\n".join(lines))


def size(num_params: int) -> str:
  """Formats a number of parameters, as in "250K" or "0.9M"."""
  if num_params < 500_000:
    return f"{num_params / 1000:.0f}K"
  return f"{num_params / 1e6:.1f}M"


def _interval(part: Json) -> intervals.Interval:
  return intervals.Interval(**part)


def _points(part: Json) -> str:
  """Formats a difference, as in "+4.2 points [+1.0, +7.1]"."""
  interval = _interval(part)
  return (
    f"{tables.points(interval.estimate)} points "
    f"{tables.interval_text(interval)}"
  )


def _sentence(text: str) -> str:
  """Capitalizes the first letter only."""
  return text[:1].upper() + text[1:]


def _percent(part: Json) -> str:
  low, high = tables.percent(part["low"]), tables.percent(part["high"])
  return f"{tables.percent(part['estimate'])} [{low}, {high}]"


def _verdict(held: Sequence[bool]) -> str:
  return APPEARS if all(held) else PARTLY if any(held) else ABSENT


def _gain_and_price(part: Json) -> Finding:
  rows = {}
  for row in part["rows"]:
    rows[row["role"]] = row  # the mean comes after its tasks
  gains = [rows["in_distribution"], rows["out_of_distribution"]]
  prices = [rows["general_chain_of_thought"], rows["general_answer_only"]]
  shares = {
    role: _early_share(part["curves"][role])
    for role in ("general_chain_of_thought", "general_answer_only")
  }
  sentences = [
    f"{_sentence(ROLES[row['role']])}: {_points(row['difference'])}."
    for row in (*gains, *prices)
  ]
  first = part["curves"]["general_answer_only"]["steps"]
  if len(first) > 2 and all(map(math.isfinite, shares.values())):
    chain, answer = shares.values()
    sentences.append(
      f"By step {first[1]:,}, {chain:.0%} of the loss in chain-of-thought "
      f"prompts had come about and {answer:.0%} of that in answer-only ones, "
      + (
        "so the first comes at once and the second more gradually."
        if chain > answer + 0.1
        else "so the paper's difference in pace does not show here."
      )
    )
  return Finding(
    name="gain and price",
    claim="Specialization lifts all four maths sets and costs general "
    "ability, chain-of-thought at once and answer-only gradually.",
    sentences=sentences,
    table=[
      ["accuracy, %", "before", "after", "difference"],
      *(
        [
          tables.row_name(row, ROLES),
          _percent(row["before"]),
          _percent(row["after"]),
          _points(row["difference"]),
        ]
        for row in part["rows"]
      ),
    ],
  )


def _early_share(curve: Json) -> float:
  """Returns `curves.early_share` of the mean over seeds; NaN for none."""
  means = map(statistics.fmean, zip(*curve["seeds"], strict=True))
  return curves.early_share(dict(zip(curve["steps"], means, strict=True)))


def _matching(part: Json) -> Finding:
  last = part["levels"][-1]
  steps = "; ".join(
    f"{_step(first)} against {_step(second)}"
    for first, second in zip(*last["steps"].values(), strict=True)
  )
  ends = [
    statistics.fmean(
      values[-1] for values in part["divergences"][name]["seeds"]
    )
    for name in last["steps"]
  ]
  differences = part["differences"]
  return Finding(
    name="distribution matching",
    claim="Matching the teacher's distribution converges faster than matching "
    "its samples.",
    sentences=[
      "Steps to the lowest held-out divergence that sample matching reaches, "
      f"by seed: {steps}.",
      f"At the end it is {ends[0]:.3f} by distribution and {ends[1]:.3f} nats "
      "a token by sample matching.",
      "Accuracy after as many steps, distribution minus sample matching: "
      + ", ".join(
        f"{_points(differences[role])} {ROLES[role]}" for role in differences
      )
      + ".",
    ],
    table=[
      ["share of the run", "divergence", "distribution", "sample", "ratio"],
      *(_level_row(level) for level in part["levels"]),
    ],
  )


def _step(step: float | None) -> str:
  return "never" if step is None else f"{step:,.0f}"


def _level_row(level: Json) -> list[str]:
  first, second = level["steps"].values()
  ratios = [a / b for a, b in zip(first, second, strict=True) if a and b]
  mean = f"{statistics.fmean(ratios):.2f}" if ratios else "-"
  if 0 < len(ratios) < len(first):
    mean += f" ({len(ratios)} of {len(first)} seeds)"
  return [
    f"{level['fraction']:.0%}",
    ", ".join(f"{one:.3f}" for one in level["divergence"]),
    ", ".join(map(_step, first)),
    ", ".join(map(_step, second)),
    mean,
  ]


def _formats(part: Json) -> Finding:
  contrast = next(
    c
    for c in part["contrasts"]
    if {c["first"], c["second"]} == {"zero-shot only", "in-context only"}
  )
  sign = 1 if contrast["first"] == "in-context only" else -1
  ahead = {
    prompt: _signed(contrast[prompt], sign)
    for prompt in ("in_context", "zero_shot")
  }
  gains = part["differences"]
  keeps_both = gains["in-context only"]
  before = part["arms"]["general"]["in_context"]
  return Finding(
    name="formats",
    claim="In-context data keeps both abilities; zero-shot data gives up "
    "in-context ability.",
    sentences=[
      "In-context data alone minus zero-shot data alone: "
      f"{_points(ahead['in_context'])} in in-context and "
      f"{_points(ahead['zero_shot'])} in zero-shot prompts.",
      "In-context data alone changes the general model by "
      f"{_points(keeps_both['zero_shot'])} in zero-shot and "
      f"{_points(keeps_both['in_context'])} in in-context prompts, where the "
      f"general model has {_percent(before)} %.",
    ],
    table=[
      ["trained on", "zero-shot prompts, %", "in-context prompts, %"],
      *(
        [
          "nothing (before)" if name == "general" else name,
          _percent(arm["zero_shot"]),
          _percent(arm["in_context"]),
        ]
        for name, arm in part["arms"].items()
      ),
    ],
  )


def _signed(part: Json, sign: int) -> Json:
  """Negates an interval if `sign` is -1."""
  if sign > 0:
    return part
  return {
    "estimate": -part["estimate"],
    "low": -part["high"],
    "high": -part["low"],
  }


def _selection(part: Json) -> Finding:
  runs = part["runs"]
  other = [r for r in runs if len(set(r["steps"].values())) > 1]
  late = {
    role: sum(values) / len(values)
    for role, values in part["late_change"].items()
  }
  parted = late["in_distribution"] > 0 > late["out_of_distribution"]
  return Finding(
    name="selection",
    claim="In- and out-of-distribution accuracy part late in training, so the "
    "checkpoint is selected out of distribution.",
    sentences=[
      f"The two rules took different steps in {len(other)} of {len(runs)} "
      "runs; selection in distribution would have cost "
      f"{_points(part['cost'])} out of distribution on test questions.",
      "From the best evaluation before to the last one, in-distribution "
      f"accuracy changed by {tables.points(late['in_distribution'])} points "
      "and out-of-distribution accuracy by "
      f"{tables.points(late['out_of_distribution'])}: the curves "
      + ("part." if parted else "do not part in a run as short as this."),
    ],
    table=[
      ["run", "seed", "out-of-distribution step", "in-distribution step"]
      + ["cost, points"],
      *(
        [
          run["arm"].replace("_", " "),
          str(run["seed"]),
          f"{run['steps']['selected']:,}",
          f"{run['steps']['in_distribution']:,}",
          tables.points(run["cost"]),
        ]
        for run in runs
      ),
    ],
  )


def _scaling(part: Json) -> Finding:
  fits = part["fits"]
  return Finding(
    name="scaling",
    claim="Accuracy after specialization grows log-linearly with the size of "
    "the model.",
    sentences=[
      f"{_sentence(ROLES[role])}: {_points(fit['slope_per_doubling'])} a "
      "doubling of the parameters; the line over their logarithm explains "
      + (
        f"{fit['r_squared']:.0%} of the variance between sizes."
        if fit["r_squared"] is not None
        else "nothing, all sizes being equal."
      )
      for role, fit in fits.items()
    ],
    table=[
      ["parameters", "in distribution, %", "out of distribution, %"],
      *(
        [
          size(point["num_params"]),
          _percent(point["in_distribution"]["after"]),
          _percent(point["out_of_distribution"]["after"]),
        ]
        for point in part["sizes"]
      ),
    ],
  )


def _starts(part: Json) -> Finding:
  return Finding(
    name="starts",
    claim="An instructed model ends higher than a raw one, which gains more.",
    sentences=[],
    table=[
      ["start", "accuracy, %", "before", "after"],
      *(
        [
          start,
          ROLES[role],
          _percent(one["before"]),
          _percent(one["after"]),
        ]
        for start, by_role in part.items()
        for role, one in by_role.items()
      ),
    ],
  )
