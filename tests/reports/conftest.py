"""A results directory as a finished demo leaves it, made of made-up numbers."""

import json
import math

import numpy as np
import pytest

COT = "zero_shot_chain_of_thought_v1"
AO = "zero_shot_answer_only_v1"
IN_DISTRIBUTION = f"mini_gsm_{COT}"
OUT_OF_DISTRIBUTION = [
  f"mini_{t}_{COT}" for t in ("multiarith", "asdiv", "svamp")
]
GENERAL = [
  f"mini_{task}_{data_format}"
  for task in (
    "boolean_expressions",
    "word_sorting",
    "object_counting",
    "navigate",
  )
  for data_format in (COT, AO)
]
STEPS = list(range(0, 1300, 100))
# Sentence, teacher tokens, student pieces, groups and one-hot pieces.
TEACHER = (
  ["Sam", " had", " $", "48", " and", " spent", " ", "12", " on", " pencils"]
  + [".", " So", " Sam", " has", " 48", "-", "12", " =", " 36", " dollars"]
  + [" left", ".", " The", " answer", " is", " 36", "."]
)
STUDENT = (
  ["▁Sam", "▁had", "▁$", "48", "▁and", "▁spent", "▁12", "▁on", "▁pencil", "s"]
  + [".", "▁So", "▁Sam", "▁has", "▁48-", "12", "▁=", "▁36", "▁dollars"]
  + ["▁left", ".", "▁The", "▁answer", "▁is", "▁36", "."]
)
GROUPS = (
  [[[i], [i]] for i in range(6)]
  + [[[6, 7], [6]], [[8], [7]], [[9], [8, 9]]]
  + [[[i], [i]] for i in range(10, 14)]
  + [[[14, 15], [14]]]
  + [[[i], [i - 1]] for i in range(16, 27)]
)


def write_results(directory):
  """Writes every file that a report can read."""
  rng = np.random.default_rng(0)
  accuracies = _accuracies()
  before, after = {}, {}
  for task, (start, end) in accuracies.items():
    for when, share, table in (
      ("before", start, before),
      ("after", end, after),
    ):
      rows = _predictions(task, share, rng)
      correct = sum(row["correct"] for row in rows)
      table[task] = {"accuracy": correct / len(rows), "n": len(rows)}
      _write_rows(directory / f"predictions/{when}/900/{task}.jsonl", rows)
  _write(
    directory / "results.json",
    {
      "before": before,
      "after": after,
      "in_distribution": IN_DISTRIBUTION,
      "out_of_distribution": OUT_OF_DISTRIBUTION,
      "general": GENERAL,
      "seconds": 447.3,
      "peak_rss_gib": 3.42,
    },
  )
  _write_runs(directory, accuracies, rng)
  _write(directory / "alignment.json", _coverage())
  _write(directory / "alignment_example.json", _example(rng))
  _write(directory / "decoding.json", _decoding())
  return directory


def _decoding():
  def way(name, accuracy, difference):
    low, high = accuracy - 0.05, accuracy + 0.05
    part = difference and dict(
      zip(("estimate", "low", "high"), difference, strict=True)
    )
    return {
      "name": name,
      "accuracy": accuracy,
      "low": low,
      "high": high,
      "n": 200,
      "difference": part,
      "seconds": 1.25,
    }

  return {
    "task": IN_DISTRIBUTION,
    "n": 200,
    "step": 900,
    "ways": [
      way("greedy", 0.8, None),
      way("greedy, calculator", 0.85, (0.05, 0.01, 0.09)),
      way("self-consistency of 8", 0.79, (-0.01, -0.04, 0.02)),
    ],
  }


def _accuracies():
  values = {IN_DISTRIBUTION: (0.06, 0.81)}
  for task, end in zip(OUT_OF_DISTRIBUTION, (0.72, 0.55, 0.41), strict=True):
    values[task] = (0.08, end)
  for index, task in enumerate(GENERAL):
    start = (0.92, 0.95, 0.71, 0.66, 0.84, 0.78, 0.9, 0.88)[index]
    values[task] = (start, start - (0.45 if COT in task else 0.17))
  return values


def _predictions(task, share, rng):
  rows = []
  for index in range(200):
    correct = bool(rng.random() < share)
    answer = 36 if correct else int(rng.integers(1, 99))
    correct = correct or answer == 36
    rows.append(
      {
        "question_id": f"{task}/test/{index}",
        "prompt": "Q: Sam had $48 and spent $12 on <pencils>. How much is "
        "left?\nLet's think step by step",
        "reference": "Sam has 48 - 12 = 36 dollars left. The answer is 36.",
        "prediction": f"Sam had 48 dollars. 48 - 12 = {answer}. The answer is "
        f"{answer}.",
        "target": "36",
        "extracted": str(answer),
        "correct": correct,
      }
    )
  return rows


def _write_runs(directory, accuracies, rng):
  pretrain = [
    _row(step, "train", {"loss": _loss(step, 6.2, 0.35, 700, rng)})
    for step in range(10, 4000, 20)
  ]
  _write_rows(directory / "pretrain/metrics.jsonl", pretrain)
  rows = [
    _row(step, "train", {"loss": _loss(step, 1.9, 0.12, 180, rng)})
    for step in range(5, 1201, 5)
  ]
  history = {}
  for step in STEPS:
    values = {}
    for task, (start, end) in accuracies.items():
      late = 0.09 * max(0, step - 900) / 300
      drift = late if task == IN_DISTRIBUTION else -late
      share = end + (start - end) * math.exp(-step / 260) + drift
      share = float(np.clip(share + 0.012 * rng.normal(), 0, 1))
      values |= {f"{task}/accuracy": share, f"{task}/n": 200.0}
    in_context = IN_DISTRIBUTION.replace("zero_shot", "in_context")
    share = 0.7 - 0.55 * math.exp(-step / 300)
    values |= {f"{in_context}/accuracy": share, f"{in_context}/n": 200.0}
    history[step] = values
    rows.append(_row(step, "evaluation", values))
  _write_rows(directory / "specialize/metrics.jsonl", rows)
  means = {
    step: float(np.mean([v[f"{t}/accuracy"] for t in OUT_OF_DISTRIBUTION]))
    for step, v in history.items()
  }
  inside = {s: v[f"{IN_DISTRIBUTION}/accuracy"] for s, v in history.items()}
  step, other = max(means, key=means.get), max(inside, key=inside.get)
  _write(
    directory / "selection.json",
    {
      "step": step,
      "mean": means[step],
      "out_of_distribution": OUT_OF_DISTRIBUTION,
      "in_distribution": IN_DISTRIBUTION,
      "in_distribution_step": other,
      "in_distribution_accuracy": inside[other],
      "in_distribution_mean": means[other],
    },
  )


def _coverage():
  return {
    "whitespace": {
      "positions": 184_201,
      "one_to_one": 148_650,
      "in_chunks": 33_711,
      "one_hot": 1_840,
      "teacher_mass_kept": 0.981,
    },
    "paper": {
      "positions": 184_201,
      "one_to_one": 120_099,
      "in_chunks": 0,
      "one_hot": 64_102,
      "teacher_mass_kept": 0.644,
    },
  }


def _example(rng):
  one_to_one = {p[0] for t, p in GROUPS if len(t) == len(p) == 1}
  targets = []
  for index, piece in enumerate(STUDENT):
    own = float(rng.beta(6, 1.2)) if index in one_to_one else 1.0
    rest = rng.dirichlet([2, 1, 0.5]) * (1 - own) * 0.97
    others = rng.choice(["▁he", "▁the", "24", "▁cost", "▁$", "▁12"], 3, False)
    targets.append([[piece, own]])
    if index in one_to_one:
      targets[-1] += [[o, float(p)] for o, p in zip(others, rest, strict=True)]
  return {
    "teacher_tokens": TEACHER,
    "student_pieces": STUDENT,
    "groups": GROUPS,
    "targets": targets,
    "mask": [int(i in one_to_one) for i in range(len(STUDENT))],
  }


def _loss(step, start, end, scale, rng):
  clean = end + (start - end) * math.exp(-step / scale)
  return clean * (1 + 0.06 * float(rng.normal()))


def _row(step, group, values):
  return {"step": step, "group": group, "values": values}


def _write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def _write_rows(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def results_dir(tmp_path):
  """A directory with every file of a finished demo."""
  return write_results(tmp_path / "results")
