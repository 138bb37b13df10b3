"""A run of t5x.train beside one of ours, and hand-overs in both directions.

  specialize demo --output_dir=demo_output
  python bench/t5x_training.py --demo=demo_output --output_dir=t5x_training

needs T5X (docs/t5x.md). Four runs, each in a process of its own; what has run
already is not run again, so that an interrupted benchmark goes on:

  t5x          300 steps of t5x.train from the general student
  ours         300 steps of specialize train from the same student
  ours_on      30 steps of specialize train from T5X's last checkpoint, with
               its Adafactor moments
  t5x_on       30 steps of t5x.train from our last checkpoint, with ours

All train on as many rows of the same task with the same optimizer, and measure
the held-out divergence, the first two also the accuracy, before their first
step and after their last. Across a hand-over the held-out divergence must be
the same (up to the records that T5X's fixed number of batches repeats or leaves
out), and the training loss, the mean of ten steps, must go on where it was. The
last two take the examples in an order of their own: by that of the first two
they would begin with what the student has just learned.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEACHER = "mini_gsm_teacher_zero_shot_chain_of_thought_v1"
QUESTIONS = "mini_gsm_zero_shot_chain_of_thought_v1"
STEPS, FURTHER_STEPS, AVERAGED = 300, 30, 10
FURTHER_SEED = 1
ROWS, TARGET_LENGTH = 5, 160
RUNS = ("t5x", "ours", "ours_on", "t5x_on")

# Of a run: the accuracy and the held-out divergence from the teacher (nats per
# token), each before and after; the mean training loss of each ten steps; and
# the number of target tokens trained on.
Figures = Mapping[str, object]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs what has not run yet and prints the comparison."""
  args = parse(argv)
  args.output_dir = args.output_dir.resolve()
  args.output_dir.mkdir(parents=True, exist_ok=True)
  results = {}
  for name in RUNS:
    path = args.output_dir / f"{name}.json"
    if name in args.runs and not path.exists():
      start = time.monotonic()
      figures = dict(_RUN[name](args))
      figures["seconds"] = round(time.monotonic() - start, 1)
      path.write_text(json.dumps(figures, indent=2) + "\n")
    if path.exists():
      results[name] = json.loads(path.read_text())
  print(table(results))
  return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--demo", type=pathlib.Path, required=True)
  parser.add_argument("--output_dir", type=pathlib.Path, required=True)
  parser.add_argument("--learning_rate", type=float, default=1e-2)
  parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
  return parser.parse_args(argv)


def run_t5x(args: argparse.Namespace) -> Figures:
  """Trains the general student by T5X."""
  start = converted(args, args.demo / "pretrain", "start_for_t5x")
  return t5x_train(args, "t5x", start, STEPS, seed=0, graded=True)


def run_ours(args: argparse.Namespace) -> Figures:
  """Trains the general student by our trainer."""
  return our_train(args, "ours", args.demo / "pretrain", STEPS)


def run_ours_on(args: argparse.Namespace) -> Figures:
  """Trains T5X's student further by our trainer."""
  return our_train(
    args,
    "ours_on",
    args.output_dir / "t5x",
    FURTHER_STEPS,
    "INITIAL_OPTIMIZER=True",
    "EVALUATIONS=()",
    f"SEED={FURTHER_SEED}",
  )


def run_t5x_on(args: argparse.Namespace) -> Figures:
  """Trains our student further by T5X."""
  start = converted(args, args.output_dir / "ours", "ours_for_t5x")
  return t5x_train(
    args, "t5x_on", start, FURTHER_STEPS, seed=FURTHER_SEED, graded=False
  )


_RUN = {
  "t5x": run_t5x,
  "ours": run_ours,
  "ours_on": run_ours_on,
  "t5x_on": run_t5x_on,
}


def converted(
  args: argparse.Namespace, checkpoint: pathlib.Path, name: str
) -> pathlib.Path:
  """Converts a checkpoint of ours to T5X's; returns `checkpoint_<step>`."""
  output = args.output_dir / name
  if not output.exists():
    specialize(
      args,
      "convert",
      f"--checkpoint={checkpoint}",
      "--to=t5x",
      f"--output={output}",
    )
  return newest_step(output)


def newest_step(directory: pathlib.Path) -> pathlib.Path:
  """Returns the `checkpoint_<step>` of the highest step."""
  return max(
    directory.glob("checkpoint_*"),
    key=lambda path: int(path.name.removeprefix("checkpoint_")),
  )


def t5x_train(
  args: argparse.Namespace,
  name: str,
  start: pathlib.Path,
  steps: int,
  *,
  seed: int,
  graded: bool,
) -> Figures:
  """Runs t5x.train from a checkpoint of T5X."""
  first = int(start.name.removeprefix("checkpoint_"))
  model_dir = args.output_dir / name
  resumes = any(model_dir.glob("checkpoint_*"))
  bindings = {
    "MIXTURE_OR_TASK_NAME": repr(TEACHER),
    "TASK_FEATURE_LENGTHS": f'{{"inputs": 256, "targets": {TARGET_LENGTH}}}',
    "EVAL_MIXTURE_OR_TASK_NAME": repr(QUESTIONS),
    "EVAL_TASK_FEATURE_LENGTHS": '{"inputs": 128, "targets": 64}',
    "BATCH_SIZE": ROWS,
    "DROPOUT_RATE": 0.0,
    "LEARNING_RATE": args.learning_rate,
    "WARMUP_STEPS": 1,
    "TRAIN_STEPS": first + steps,
    "EVAL_PERIOD": steps,
    "EVAL_STEPS": 20,  # the held-out records once, nearly
    "CHECKPOINT_PERIOD": min(steps, 50),
    "INITIAL_CHECKPOINT_PATH": repr(os.fspath(start)),
    "MODEL_DIR": repr(os.fspath(model_dir)),
    "train/utils.DatasetConfig.seed": seed,
    "train.stats_period": AVERAGED,
    "train.run_eval_before_training": not resumes,
  }
  if not graded:
    bindings["train.infer_eval_dataset_cfg"] = None
  environment = {"SPECIALIZE_DATA": os.fspath(args.demo / "world")}
  execute(
    [
      *("-m", "t5x.train"),
      f"--gin_search_paths={ROOT / 'gin_configs'}",
      f"--tfds_data_dir={args.demo / 'world/tfds'}",
      *("--gin_file=t5x/mini.gin", "--gin_file=t5x/train.gin"),
      *(f"--gin.{key}={value}" for key, value in bindings.items()),
    ],
    log=args.output_dir / f"{name}.log",
    environment=environment,
  )
  losses = scalars(model_dir / "train", "loss")
  held_out = scalars(model_dir / "training_eval" / TEACHER, "distillation/kl")
  accuracies = []
  if graded:
    rows = (model_dir / f"inference_eval/{QUESTIONS}-metrics.jsonl").open()
    accuracies = [json.loads(row)["accuracy"] for row in rows]
  filled = scalars(model_dir / "train", "non_padding_fraction/loss_weights")
  return {
    "accuracy": [*accuracies[:1], *accuracies[-1:]],
    "held_out_kl": [held_out[min(held_out)], held_out[max(held_out)]],
    "losses": [losses[step] for step in sorted(losses)],
    "target_tokens": round(
      sum(filled.values()) * AVERAGED * ROWS * TARGET_LENGTH
    ),
  }


def our_train(
  args: argparse.Namespace,
  name: str,
  start: pathlib.Path,
  steps: int,
  *bindings: str,
) -> Figures:
  """Runs specialize train from a checkpoint of any kind."""
  model_dir = args.output_dir / name
  bindings = (
    *bindings,
    f"MODEL_DIR={model_dir}",
    f"INITIAL_CHECKPOINT_PATH={start}",
    f"LEARNING_RATE={args.learning_rate}",
    f"TRAIN_STEPS={steps}",
    f"EVAL_EVERY={steps}",
  )
  specialize(
    args,
    "train",
    "--gin_file=experiments/mini/beside_t5x.gin",
    f"--data_dir={args.demo / 'world'}",
    *(f"--gin.{binding}" for binding in bindings),
  )
  rows = [json.loads(row) for row in (model_dir / "metrics.jsonl").open()]
  trained = [row["values"] for row in rows if row["group"] == "train"]
  measured = [row["values"] for row in rows if row["group"] == "evaluation"]
  before, after = measured[0], measured[-1]
  return {
    "accuracy": [
      x[key] for x in (before, after) if (key := f"{QUESTIONS}/accuracy") in x
    ],
    "held_out_kl": [x["held_out/loss_kl"] for x in (before, after)],
    "losses": [
      statistics.fmean(row["loss"] for row in trained[at : at + AVERAGED])
      for at in range(0, len(trained), AVERAGED)
    ],
    "target_tokens": sum(row["num_target_tokens"] for row in trained),
  }


def specialize(args: argparse.Namespace, command: str, *flags: str) -> None:
  """Runs one of our commands."""
  execute(
    ["-m", f"specialize_jax.cli.{command}", *flags],
    log=args.output_dir / f"{command}.log",
    environment={},
  )


def execute(
  arguments: Sequence[str],
  *,
  log: pathlib.Path,
  environment: Mapping[str, str],
) -> None:
  """Runs Python in a process of its own; its words go to a file.

  Raises:
    SystemExit: it failed.
  """
  with log.open("a") as file:
    done = subprocess.run(
      [sys.executable, *arguments],
      env={
        **os.environ,
        **environment,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.fspath(ROOT),
      },
      stdout=file,
      stderr=subprocess.STDOUT,
      check=False,
    )
  if done.returncode:
    raise SystemExit(f"{' '.join(arguments[:2])} failed: see {log}")


def scalars(directory: pathlib.Path, tag: str) -> dict[int, float]:
  """Reads one scalar of TensorBoard's event files, by step."""
  import tensorflow as tf

  values = {}
  for file in sorted(directory.glob("events.*")):
    for event in tf.compat.v1.train.summary_iterator(os.fspath(file)):
      for value in event.summary.value:
        if value.tag == tag:
          values[event.step] = float(tf.make_ndarray(value.tensor))
  return values


def table(results: Mapping[str, Figures]) -> str:
  """Returns the figures of the runs, and those either side of a hand-over."""
  lines = [
    f"{'run':12}{'target tokens':>14}{'accuracy':>16}{'held-out KL':>18}"
    f"{'first loss':>11}{'last loss':>10}{'seconds':>9}"
  ]
  for name, run in results.items():
    accuracy = " ".join(f"{x:7.1%}" for x in run["accuracy"])
    held_out = run["held_out_kl"]
    lines.append(
      f"{name:12}{run['target_tokens']:14,.0f}"
      f"{accuracy:>16}"
      f"{held_out[0]:10.4f} {held_out[1]:7.4f}"
      f"{run['losses'][0]:11.4f}{run['losses'][-1]:10.4f}{run['seconds']:9.0f}"
    )
  for before, after in (("t5x", "ours_on"), ("ours", "t5x_on")):
    if before in results and after in results:
      lines.append(
        f"{before} to {after}: held-out KL "
        f"{results[before]['held_out_kl'][1]:.6f}, then "
        f"{results[after]['held_out_kl'][0]:.6f}; training loss "
        f"{results[before]['losses'][-1]:.4f}, then "
        f"{results[after]['losses'][0]:.4f}"
      )
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
