"""Writes made-up outputs of the arms of a study, with known accuracies."""

import json

import numpy as np

from specialize_jax.study import arms, demo, findings, jobs

MATHS = ("gsm", "multiarith", "asdiv", "svamp")
IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION = (
  f"mini_{name}_zero_shot_chain_of_thought_v1" for name in MATHS
)
IN_CONTEXT = [f"mini_{n}_in_context_chain_of_thought_v1" for n in MATHS]
GENERAL = [
  f"mini_navigate_zero_shot_{kind}_v1"
  for kind in ("chain_of_thought", "answer_only")
]
SEEDS = (0, 1, 2)
STEPS = (0, 100, 200, 300)
QUESTIONS = 60
SIZES = {"small": 50_000, "middle": 100_000, "large": 200_000, "huge": 400_000}
CERTAINTY = {
  "num_records": 1000,
  "num_steps": 20_000,
  "none_above_90": 0.5,
  "none_above_99": 0.8,
  "top_mass": 0.97,
  "entropy": 0.4,
  "cost": 0.3,
  "right": 0.6,
}
# Accuracy after: in distribution, out of distribution, in context, general.
AFTER = {
  "general": (0.05, 0.1, 0.2, 0.9),
  "middle": (0.6, 0.4, 0.3, 0.1),
  "sample": (0.6, 0.4, 0.3, 0.1),
  "zero_shot": (0.6, 0.4, 0.05, 0.1),
  "in_context": (0.5, 0.3, 0.45, 0.1),
  "half": (0.55, 0.35, 0.3, 0.1),
  "raw_general": (0.0, 0.0, 0.0, 0.1),
  "raw": (0.55, 0.35, 0.3, 0.1),
  "small": (0.5, 0.3, 0.3, 0.1),
  "large": (0.7, 0.5, 0.3, 0.1),
  "huge": (0.8, 0.6, 0.3, 0.1),
}


def study():
  """A study of eleven arms, without anything to run them by."""
  return arms.Study(
    world=None,
    alignment_mode="whitespace",
    tasks=demo.Tasks(
      in_distribution=IN_DISTRIBUTION,
      out_of_distribution=OUT_OF_DISTRIBUTION,
      general=GENERAL,
    ),
    in_context=IN_CONTEXT,
    arms=[arms.Arm(name=name, gin_files=()) for name in AFTER],
    roles=arms.Roles(
      general="general",
      specialized="middle",
      sample_matching="sample",
      formats={
        "four formats": "middle",
        "zero-shot only": "zero_shot",
        "in-context only": "in_context",
      },
      sizes=[("general", name) for name in SIZES],
      in_context_shares={0.0: "zero_shot", 0.5: "half", 1.0: "in_context"},
      raw_start=("raw_general", "raw"),
    ),
  )


def collect(directory, **made_up):
  """Returns the `study.json` of the arms that `write` writes."""
  places = write(directory, **made_up)
  return findings.collect(study(), places, SEEDS, directory=directory)


def write(directory, *, cost=0.1, parts=True):
  """Writes every arm's job, and returns their directories.

  Args:
    directory: where to.
    cost: what in-distribution selection loses on the other test sets.
    parts: whether validation out of distribution falls at the last step.
  """
  places = {}
  for seed in SEEDS:
    world = arms.job_name(arms.WORLD, seed)
    places[world] = directory / f"{world}-0"
    places[world].mkdir(parents=True)
    measured = {**CERTAINTY, "entropy": 0.4 + seed / 10}
    (places[world] / jobs.RESULT).write_text(
      json.dumps({"certainty": measured})
    )
  for arm, accuracies in AFTER.items():
    for seed in SEEDS:
      place = directory / f"{arms.job_name(arm, seed)}-0"
      places[arms.job_name(arm, seed)] = place
      _write_one(place, arm, seed, accuracies, cost=cost, parts=parts)
  took = {"job": "x", "seconds": 9.0, "cpu_seconds": 7200.0, "status": 0}
  (directory / "spent.jsonl").write_text(json.dumps(took) + "\n")
  return places


def _write_one(place, arm, seed, accuracies, *, cost, parts):
  steps = {arms.SELECTED: 200}
  if not arm.endswith("general"):
    steps[arms.IN_DISTRIBUTION] = 300
  tests = {}
  for rule, step in steps.items():
    inside, outside, in_context, general = accuracies
    if rule == arms.IN_DISTRIBUTION:
      outside -= cost
    shares = {
      IN_DISTRIBUTION: inside,
      **dict.fromkeys(OUT_OF_DISTRIBUTION, outside),
      **dict.fromkeys(IN_CONTEXT, in_context),
      **dict.fromkeys(GENERAL, general),
    }
    tests[rule] = {task: {} for task in shares}
    for task, share in shares.items():
      _write_predictions(place / f"predictions/{rule}/{step}", task, share)
  _write_metrics(place / "run", arm, seed, accuracies, parts)
  result = {
    "arm": arm,
    "seed": seed,
    "num_params": SIZES.get(arm, 100_000),
    "steps": steps,
    "tests": tests,
  }
  (place / jobs.RESULT).write_text(json.dumps(result))


def _write_predictions(directory, task, share):
  """As many right as the share says, spread by a fixed shuffle."""
  right = np.arange(QUESTIONS) < round(share * QUESTIONS)
  right = np.random.default_rng(7).permutation(right)
  rows = [
    {"question_id": f"{task}/test/{n}", "correct": bool(correct)}
    for n, correct in enumerate(right)
  ]
  _write_rows(directory / f"{task}.jsonl", rows)


def _write_metrics(directory, arm, seed, accuracies, parts):
  speed = 40 if arm == "sample" else 20
  rows = [
    {
      "step": step,
      "group": "train",
      "values": {"nll": 2 / (1 + step / (speed + seed)), "loss": 1.0},
    }
    for step in range(1, STEPS[-1] + 1)
  ]
  for place, step in enumerate(STEPS):
    grown = min(place, 2) / 2 * (0.8 if arm == "sample" else 1.0)
    inside, outside, _, _ = accuracies
    last = step == STEPS[-1]
    values = {f"{IN_DISTRIBUTION}/accuracy": inside * grown + 0.05 * last}
    for task in OUT_OF_DISTRIBUTION:
      values[f"{task}/accuracy"] = outside * grown - 0.1 * (last and parts)
    for task, left in zip(GENERAL, (0.0, 0.4), strict=True):
      values[f"{task}/accuracy"] = 0.9 if not place else left / place
    values["held_out/loss_kl"] = 1 / (1 + step / (speed + seed))
    rows.append({"step": step, "group": "evaluation", "values": values})
  _write_rows(directory / "metrics.jsonl", rows)


def _write_rows(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
