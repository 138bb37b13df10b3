"""Every command that writes, on an input of a second, and what it made."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable

import numpy as np
from testdata import local_teacher, tiny_gin, tiny_world

_GIN = (
  """
from __gin__ import dynamic_registration
from specialize_jax.losses import distillation
from specialize_jax.runs import experiment
from specialize_jax.t5 import config
from specialize_jax.training import loop

include "runs/train.gin"

MIXTURE_OR_TASK_NAME = "mini_facts_v1"
TASK_FEATURE_LENGTHS = {"inputs": 64, "targets": 64}
BATCH_SIZE = 4
TRAIN_STEPS = 6
CHECKPOINT_EVERY = 2
EVAL_EVERY = 3
KEEP = None
LOG_EVERY = 1
EVALUATIONS = [@experiment.Evaluation()]
experiment.Evaluation:
  mixture_or_task_name = "mini_svamp_zero_shot_chain_of_thought_v1"
  task_feature_lengths = {"inputs": 64, "targets": 64}
  max_new_tokens = 4
  batch_size = 2
loop.LoopConfig.log_example_ids = True
distillation.LossConfig.num_chunks = 1
config.T5Config:
  dtype = "float32"
  scan_layers = False  # of one layer each: traced in half of the time
"""
  + tiny_gin.MODEL
)
_DEMO_EVALUATIONS = """[
  @inside/experiment.Evaluation(), @outside/experiment.Evaluation()
]
inside/experiment.Evaluation:
  mixture_or_task_name = "mini_gsm_zero_shot_chain_of_thought_v1"
outside/experiment.Evaluation:
  mixture_or_task_name = "mini_svamp_zero_shot_chain_of_thought_v1"
experiment.Evaluation:
  batch_size = 4
  max_new_tokens = 2
  num_examples = 4
"""
_DEMO_GIN = f"""
from __gin__ import dynamic_registration
from specialize_jax.mini import world
from specialize_jax.runs import experiment
from specialize_jax.study import demo
include "runs/demo.gin"
world.WorldConfig:
  train_size = 40
  out_of_distribution_train_size = 20
  validation_size = 10
  test_size = 10
  general_train_size = 20
  general_validation_size = 10
  general_test_size = 10
  weak_maths_size = 20
  samples_per_question = 2
demo.Tasks:
  out_of_distribution = ["mini_svamp_zero_shot_chain_of_thought_v1"]
  general = []
demo.Demo.tests = {_DEMO_EVALUATIONS}
"""
# Each stage of the whole way, but of fewer tasks: those that differ in nothing
# here cost a compilation each.
_DEMO_RUN_GIN = """
from __gin__ import dynamic_registration
from specialize_jax.runs import experiment
from specialize_jax.t5 import config
from specialize_jax.tasks import mixtures
from specialize_jax.training import optimizer
include "experiments/mini/{name}.gin"
TASK_FEATURE_LENGTHS = {{"inputs": 64, "targets": 64}}
BATCH_SIZE = 4
TRAIN_STEPS = 4
WARMUP_STEPS = 2
CHECKPOINT_EVERY = 2
{more}
optimizer.OptimizerConfig.name = "adamw"
config.T5Config:
  embed_dim = 16
  mlp_dim = 16
  num_heads = 2
  head_dim = 8
  num_encoder_layers = 1
  num_decoder_layers = 1
"""
_DEMO_PRETRAIN = 'MIXTURE_OR_TASK_NAME = "mini_facts_v1"'
_DEMO_SPECIALIZE = f"""
mixtures.specialize:
  name = "mini_specialize_zero_shot"
  zero_shot_answer_only = 0.0
  in_context_chain_of_thought = 0.0
  in_context_answer_only = 0.0
EVAL_EVERY = 2
EVALUATIONS = {_DEMO_EVALUATIONS}
"""
_TINY_MODEL_GIN = """
from __gin__ import dynamic_registration
from specialize_jax.t5 import config
config.T5Config:
  vocab_size = 128
  embed_dim = 128
  mlp_dim = 128
  num_heads = 1
  head_dim = 128
  num_encoder_layers = 1
  num_decoder_layers = 1
  mlp_activations = ("relu",)
  tied_head = True
"""
TASK = "mini_svamp_zero_shot_chain_of_thought_v1"
NUM_QUESTIONS, NUM_SAMPLES = 12, 4

# That neither train nor decode nor read what did: cheap to be started.
LIGHT = ("teach", "import", "align", "score", "inspect --html")
NAMES = (
  "teach",
  "import",
  "align",
  "prepare",
  "train",
  "eval",
  "select",
  "score",
  "generate",
  "convert --to=huggingface",
  "convert --to=ours",
  "convert --to=t5x",
  "report",
  "inspect --html",
  "plan --output",
  "demo",
)


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of the table.

  Attributes:
    name: of the row.
    argv: its arguments, from the directory that it writes to.
    made: what it made there, so that equal runs are equal.
    is_whole: whether what it makes appears at once, under its name.
    prepare: fills the directory with what has to be there before.
    kills: how often it is killed.
    resumes: whether a stopped run's work counts for the next.
    is_slow: whether a run takes ten seconds of a core, so that fewer moments
      are tried of a fault that has several.
  """

  name: str
  argv: Callable[[pathlib.Path], list]
  made: Callable[[pathlib.Path], object]
  is_whole: Callable[[pathlib.Path], bool] | None = None
  prepare: Callable[[pathlib.Path], None] | None = None
  kills: int = 20
  resumes: bool = False
  is_slow: bool = False


class Inputs:
  """What the commands read, made once; nothing changes it afterwards."""

  def __init__(self, directory, server, base_url):
    self.directory = pathlib.Path(directory)
    self.base_url = base_url
    self.world = pathlib.Path(tiny_world.build(self.directory / "world"))
    self.spiece = self.world / "mini/student.model"
    self.train_questions = self.world / "mini/mini_gsm/train.jsonl"
    self.records = tiny_world.write_records(
      self.world, self.directory / "records"
    )
    self.questions = local_teacher.write_questions(
      self.directory / "questions.jsonl", NUM_QUESTIONS
    )
    for name, text in {
      "tiny": _GIN,
      "demo": _DEMO_GIN,
      "pretrain": _DEMO_RUN_GIN.format(name="pretrain", more=_DEMO_PRETRAIN),
      "specialize": _DEMO_RUN_GIN.format(
        name="specialize", more=_DEMO_SPECIALIZE
      ),
      "tiny_model": _TINY_MODEL_GIN,
    }.items():
      self.gin(name).write_text(text)
    self._write_rows()
    self._server = server

  @functools.cached_property
  def run(self):
    """The MODEL_DIR of a run, which is trained when it is first asked for."""
    place = self.directory / "run"
    ended = self._server.run(["train", *self.train_flags(place)])
    assert ended.status == 0, ended.stderr
    return place

  @functools.cached_property
  def results(self):
    """The results of a demo, with that run."""
    return self._write_results()

  def gin(self, name):
    """The path of a gin file."""
    return self.directory / f"{name}.gin"

  def train_flags(self, model_dir, *more):
    """The arguments of a run of twelve steps."""
    return [
      f"--gin_file={self.gin('tiny')}",
      f"--data_dir={self.world}",
      f"--gin.MODEL_DIR={model_dir}",
      *more,
    ]

  def _write_rows(self):
    rows = tiny_world.read(self.train_questions)
    tiny_world.write(
      self.directory / "inputs.jsonl",
      [{"id": row["question_id"], "text": row["question"]} for row in rows],
    )
    tiny_world.write(
      self.directory / "predictions.jsonl",
      [
        {"prediction": row["rationale"], "target": row["answer"]}
        for row in rows * 40
      ],
    )
    tiny_world.write(
      self.directory / "responses.jsonl",
      [_response(row, n) for n, row in enumerate(rows * 20)],
    )

  def _write_results(self):
    results = self.directory / "results"
    shutil.copytree(
      self.run, results / "specialize", ignore=shutil.ignore_patterns("check*")
    )
    scores = {TASK: {"accuracy": 0.25, "n": 4}}
    (results / "results.json").write_text(
      json.dumps(
        {
          "before": scores,
          "after": scores,
          "in_distribution": TASK,
          "out_of_distribution": [TASK],
          "general": [],
        }
      )
    )
    return results


def _response(row, number):
  words = re.findall(r"\s*\S+", row["rationale"])
  return {
    "question_id": number,
    "question": row["question"],
    "answer": row["answer"],
    "choices": [
      {
        "message": {"content": "".join(words)},
        "finish_reason": "stop",
        "logprobs": {
          "content": [
            {
              "token": word,
              "logprob": -0.1,
              "top_logprobs": [{"token": word, "logprob": -0.1}],
            }
            for word in words
          ]
        },
      }
    ],
  }


def table(inputs):
  """Returns the commands by name."""
  base = inputs.directory
  teacher = [
    f"--records={inputs.records}",
    f"--vocabulary={inputs.spiece}",
    "--mode=whitespace",
  ]
  commands = [
    Command(
      "teach",
      lambda out: [
        *local_teacher.argv(inputs.base_url, inputs.questions, out / "store"),
        f"--num_samples={NUM_SAMPLES}",
        "--samples_per_request=1",
        "--concurrency=2",
      ],
      lambda out: _sampled(out / "store"),
      resumes=True,
    ),
    Command(
      "import",
      lambda out: [f"--input={base}/responses.jsonl", f"--output={out}/store"],
      lambda out: tree(out / "store"),
      lambda out: (out / "store").exists(),
    ),
    Command(
      "align",
      lambda out: [
        *teacher,
        f"--output={out}/aligned.jsonl",
        f"--report={out}/report.json",
      ],
      tree,
      lambda out: (
        (out / "aligned.jsonl").exists() and (out / "report.json").exists()
      ),
    ),
    Command(
      "prepare",
      lambda out: [
        *teacher,
        f"--data_dir={out}/tfds",
        "--dataset_name=mini_gsm_teacher",
        f"--questions={inputs.train_questions}",
        f"--report={out}/report.json",
      ],
      prepared,
      lambda out: (out / "report.json").exists(),
    ),
    Command(
      "train",
      lambda out: inputs.train_flags(out / "run"),
      lambda out: trained(out / "run"),
      resumes=True,
      is_slow=True,
    ),
    Command(
      "eval",
      lambda out: [
        f"--data_dir={inputs.world}",
        f"--gin.CHECKPOINT_PATH={inputs.run}",
        f"--gin.MIXTURE_OR_TASK_NAME={TASK}",
        '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 64}',
        "--gin.MAX_NEW_TOKENS=8",
        "--gin.EVAL_BATCH_SIZE=2",
        f"--gin.EVAL_OUTPUT_DIR={out}/eval",
      ],
      lambda out: evaluated(out / "eval"),
      lambda out: (out / "eval/metrics.jsonl").exists(),
      resumes=True,
      is_slow=True,
    ),
    Command(
      "select",
      lambda out: [
        f"--model_dir={out}/run",
        f"--out_of_distribution={TASK}",
        f"--in_distribution={TASK}",
      ],
      lambda out: selected(out / "run"),
      lambda out: (out / "run/selection.json").exists(),
      prepare=lambda out: shutil.copytree(inputs.run, out / "run"),
      resumes=True,
    ),
    Command(
      "score",
      lambda out: [
        "--task=gsm8k",
        f"--inputs={base}/predictions.jsonl",
        f"--output={out}/graded.jsonl",
      ],
      tree,
      lambda out: (out / "graded.jsonl").exists(),
    ),
    Command(
      "generate",
      lambda out: [
        f"--checkpoint={inputs.run}",
        f"--vocabulary={inputs.spiece}",
        f"--inputs={base}/inputs.jsonl",
        f"--outputs={out}/outputs.jsonl",
        "--max_new_tokens=8",
        "--batch_size=2",
      ],
      lambda out: (out / "outputs.jsonl").read_text(),
      resumes=True,
    ),
    *(
      Command(
        f"convert --to={kind}",
        lambda out, kind=kind: [
          f"--checkpoint={inputs.run}",
          f"--to={kind}",
          f"--vocabulary={inputs.spiece}",
          f"--output={out}/converted",
        ],
        lambda out, kind=kind: converted(out / "converted", kind),
        lambda out: (out / "converted").exists(),
        kills=20 if kind == "huggingface" else 10,
      )
      for kind in ("huggingface", "ours", "t5x")
    ),
    Command(
      "report",
      lambda out: [
        f"--results_dir={inputs.results}",
        f"--output={out}/report.html",
        f"--figures_dir={out}/figures",
        f"--markdown={out}/report.md",
      ],
      drawn,
      lambda out: (out / "report.html").exists(),
    ),
    Command(
      "inspect --html",
      lambda out: [
        *teacher,
        f"--html={out}/sample.html",
      ],
      tree,
      lambda out: (out / "sample.html").exists(),
    ),
    Command(
      "plan --output",
      lambda out: [
        f"--model={inputs.gin('tiny_model')}",
        "--topology=v5e:2x2",
        "--mesh=fsdp=4",
        "--batch_size=8",
        "--input_length=128",
        "--target_length=128",
        f"--output={out}/plan.json",
        f"--figure={out}/plan.svg",
      ],
      planned,
      lambda out: (out / "plan.json").exists(),
      kills=6,
      is_slow=True,
    ),
    Command(
      "demo",
      lambda out: [
        f"--output_dir={out}/demo",
        "--cpu_devices=1",
        f"--gin_file={inputs.gin('demo')}",
        f"--pretrain_gin_file={inputs.gin('pretrain')}",
        f"--specialize_gin_file={inputs.gin('specialize')}",
      ],
      demonstrated,
      lambda out: (out / "demo/report.html").exists(),
      resumes=True,
      is_slow=True,
    ),
  ]
  return {command.name: command for command in commands}


def tree(directory):
  """Every file below a directory by its name, as a hash of its content.

  What a killed process leaves under a name of its own is not among them:
  `leftovers` counts those.
  """
  return {
    os.fspath(file.relative_to(directory)): hashlib.sha256(
      file.read_bytes()
    ).hexdigest()
    for file in sorted(directory.rglob("*"))
    if file.is_file() and not file.name.startswith(".")
  }


def leftovers(directory):
  """Hidden files and folders: locks, and what was not finished."""
  return sorted(
    os.fspath(file.relative_to(directory))
    for file in directory.rglob("*")
    if file.name.startswith(".") or "orbax-checkpoint-tmp" in file.name
  )


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


_MEASURED = ("_per_second", "mfu", "seconds", "share", "hbm", "data_wait")


def _metrics(path):
  """The rows of a log without what a clock measured."""
  return [
    {
      "step": row["step"],
      "group": row["group"],
      "values": {
        name: value
        for name, value in row["values"].items()
        if not any(part in name for part in _MEASURED)
      },
    }
    for row in _rows(path)
  ]


def _checkpoint(step_dir):
  """The digests of a step, and its iterator's state."""
  return {
    name: (step_dir / name / "metadata").read_text()
    for name in ("fingerprint", "iterator")
  }


def trained(run):
  """A run's log, examples, predictions and checkpoints."""
  fingerprints = {
    int(place.name): json.loads(_checkpoint(place)["fingerprint"])["state"]
    for place in (run / "checkpoints").iterdir()
    if place.name.isdecimal()
  }
  return {
    "metrics": _metrics(run / "metrics.jsonl"),
    "examples": _rows(run / "examples.jsonl"),
    "predictions": tree(run / "predictions"),
    "checkpoints": fingerprints,
  }


def prepared(out):
  """A prepared dataset without what tells it from one prepared again."""
  return {
    name: value
    for name, value in tree(out).items()
    # Both have the edition, which tells it from one prepared again.
    if not name.endswith(("dataset_info.json", "metadata.json"))
  }


def evaluated(folder):
  """What an evaluation wrote.

  Of `.progress` what the rows are made of, and the checksum of all: between
  them are those of single batches, which a second start drops.
  """
  made = tree(folder)
  for name in made:
    if name.endswith(".progress"):
      first, *_, last = (folder / name).read_text().splitlines()
      made[name] = [first, last]
  return made


def selected(run):
  """What a selection wrote."""
  return {
    "selection": json.loads((run / "selection.json").read_text()),
    "run": trained(run),
    "best": tree(run / "best"),
  }


def converted(folder, kind):
  """A converted checkpoint; of ours and T5X's, the arrays."""
  if kind == "huggingface":
    return tree(folder)
  if kind == "ours":
    (step,) = (folder / "checkpoints").iterdir()
    return _checkpoint(step), tree(folder / "vocabulary")
  from specialize_jax.checkpoints import opening

  source = opening.open_checkpoint(folder).source
  return {
    name: zlib.crc32(np.ascontiguousarray(source.read(name)))
    for name in source.shapes
  }


def drawn(out):
  """A report: the page, and the names of the figures."""
  return {
    "html": _undated((out / "report.html").read_text()),
    "markdown": (out / "report.md").read_text(),
    "files": sorted(tree(out)),
  }


def _undated(text):
  # matplotlib names clip paths at random.
  return re.sub(r"\b[pm][0-9a-f]{10}\b", "", text)


def planned(out):
  """A plan without how long it took."""
  rows = json.loads((out / "plan.json").read_text())
  for row in rows:
    row.pop("compile_seconds")
  return rows, (out / "plan.svg").exists()


def demonstrated(out):
  """What a demo found."""
  demo = out / "demo"
  results = json.loads((demo / "results.json").read_text())
  for name in ("seconds", "peak_rss_gib", "specialize_crc32"):
    results.pop(name)
  predictions = {
    # With the fingerprint of a checkpoint, which has the time of its save.
    name: content
    for name, content in tree(demo / "predictions").items()
    if not name.endswith(".progress")
  }
  return {
    "results": results,
    "selection": json.loads((demo / "selection.json").read_text()),
    "metrics": [
      _metrics(demo / run / "metrics.jsonl")
      for run in ("pretrain", "specialize")
    ],
    "predictions": predictions,
    "report": (demo / "report.html").exists(),
  }


def _sampled(store):
  records = local_teacher.check_whole(store, NUM_QUESTIONS, NUM_SAMPLES)
  return len(records)
