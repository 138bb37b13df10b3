"""Builds a mini world on disk: problems, tokenizers, text and records.

    build("data", seed=0, config=WorldConfig())

writes to `data/mini`:

    <family>/{train,validation,test}.jsonl   word problems, four families
    <task>/{train,validation,test}.jsonl     general tasks
    facts/train.jsonl                        facts such as "5 + 7 ="
    weak_maths/train.jsonl                   one-step problems, bare answers
    sums/train.jsonl                         one-step problems, calculations
    reading/train.jsonl                      a story's names and numbers
    text/train.jsonl                         questions as plain text
    student.model, teacher_tokenizer.json    the two tokenizers
    records/records.jsonl                    the teacher's samples
    world.json                               seed and config of the world

A row of a family or task is {"question_id", "question", "answer",
"rationale"}; facts, weak maths, sums and reading also have the "format" they
are for; text has {"text"}.
"""

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.files import writing
from specialize_jax.mini import (
  general_tasks,
  grammar,
  lessons,
  problems,
  splits,
  stories,
  styles,
  teacher,
  vocabulary,
)
from specialize_jax.records import schema, store
from specialize_jax.terminal import progress

DIRECTORY = "mini"

_MANIFEST = "world.json"
_LEAD_REPEATS = 3
_VERSION = 3  # of the files; a world of another version is rebuilt
# The default of a field that is newer than this version: a world that was built
# before the field existed is the world of its default.
_NEW_DEFAULTS = {"style": "certain"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """The sizes of a world, and its teacher.

  Attributes:
    train_size: Number of training problems of `mini_gsm`.
    out_of_distribution_train_size: Number of training problems of each other
      family.
    validation_size: Number of validation problems of each family.
    test_size: Number of test problems of each family.
    general_train_size: Number of training exercises of each general task.
    general_validation_size: Number of validation exercises of each.
    general_test_size: Number of test exercises of each.
    weak_maths_size: Number of one-step problems in each family's wordings.
    step_weights: Weights of 1, 2, 3 and 4 steps in `mini_gsm`.
    samples_per_question: Number of teacher samples for each training and each
      validation problem of `mini_gsm`; 0 to write no records.
    temperature: The teacher's sampling temperature.
    mistake_rate: The probability that a step's result is wrong.
    style: How the teacher writes, by name: one of `styles.STYLES`.
    student_vocab_size: Maximum number of the student's pieces, without
      sentinels.
    teacher_vocab_size: Number of the teacher's tokens; so few that nouns and
      large numbers are several tokens.
  """

  train_size: int = 8000
  out_of_distribution_train_size: int = 1500
  validation_size: int = 200
  test_size: int = 300
  general_train_size: int = 1500
  general_validation_size: int = 100
  general_test_size: int = 200
  weak_maths_size: int = 1000
  step_weights: tuple[float, ...] = (0.4, 0.4, 0.15, 0.05)
  samples_per_question: int = 2
  temperature: float = 0.7
  mistake_rate: float = 0.03
  style: str = "certain"
  student_vocab_size: int = 512
  teacher_vocab_size: int = 405

  def __post_init__(self) -> None:
    """Checks the name of the style."""
    styles.find(self.style)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """The items of a world.

  Attributes:
    maths: Word problems by family and split.
    general: Exercises by task and split.
    weak_maths: One-step problems of all families.
  """

  maths: Mapping[str, Mapping[str, Sequence[problems.Problem]]]
  general: Mapping[str, Mapping[str, Sequence[general_tasks.Exercise]]]
  weak_maths: Sequence[problems.Problem]


def build(
  directory: str | os.PathLike[str], *, seed: int, config: WorldConfig
) -> None:
  """Builds `directory/mini` atomically; keeps it if it is already built.

  Args:
    directory: The parent directory; created if missing.
    seed: The seed of the world.
    config: The sizes of the world.

  Raises:
    UserError: `directory/mini` is another world, or the config asks for more
      distinct problems than a family has.
  """
  place = pathlib.Path(directory) / DIRECTORY
  manifest = _manifest(seed, config)
  if _is_built(place, manifest):
    return
  with writing.new_directory(place) as scratch:
    _write_world(scratch, seed, config)
    _write_text(scratch / _MANIFEST, json.dumps(manifest, indent=2) + "\n")


def draw_world(seed: int, config: WorldConfig) -> World:
  """Draws all items of a world, a pure function of its arguments.

  Raises:
    UserError: A family has too few distinct problems.
  """
  taken = splits.Registry()
  other_sizes = {
    "train": config.out_of_distribution_train_size,
    "validation": config.validation_size,
    "test": config.test_size,
  }
  general_sizes = {
    "train": config.general_train_size,
    "validation": config.general_validation_size,
    "test": config.general_test_size,
  }
  families = splits.families(config.step_weights)
  sizes = dict.fromkeys(families, other_sizes)
  sizes[stories.FAMILY] = {**other_sizes, "train": config.train_size}
  tasks = splits.general()
  maths = splits.fill_all(families, sizes, seed=seed, taken=taken)
  weak_maths = []
  for name, draw in splits.one_step_families().items():
    # All of a family's validation and test keys are taken by now.
    weak_maths += splits.fill(
      f"weak_maths/{name}",
      "train",
      config.weak_maths_size,
      draw=draw,
      seed=seed,
      taken=taken,
    )
  general = splits.fill_all(
    tasks, dict.fromkeys(tasks, general_sizes), seed=seed, taken=taken
  )
  return World(maths=maths, general=general, weak_maths=weak_maths)


def sample_teacher(
  seed: int, config: WorldConfig
) -> Iterator[schema.TeacherRecord]:
  """Yields the teacher's records of a world without writing it.

  Raises:
    UserError: A family has too few distinct problems.
  """
  world = draw_world(seed, config)
  tokenizer = _teacher_tokenizer(
    world, _random_solutions(world, seed, config), config
  )
  yield from _sample_records(world, tokenizer, seed, config)


def _write_early_lessons(
  place: pathlib.Path, world: World
) -> list[lessons.Row]:
  """Writes the data for pre-training only, and returns its rows."""
  stories_told = [
    p for by_split in world.maths.values() for p in by_split["train"]
  ]
  written = {
    "facts": lessons.fact_rows(),
    "weak_maths": lessons.weak_maths_rows(world.weak_maths),
    "sums": lessons.sums_rows(world.weak_maths),
    "reading": lessons.reading_rows(stories_told),
  }
  for name, rows in written.items():
    _write_rows(place / name / "train.jsonl", rows)
  return [row for rows in written.values() for row in rows]


def _manifest(seed: int, config: WorldConfig) -> dict[str, object]:
  written = {
    name: value
    for name, value in dataclasses.asdict(config).items()
    if name not in _NEW_DEFAULTS or value != _NEW_DEFAULTS[name]
  }
  written["step_weights"] = list(config.step_weights)
  return {"version": _VERSION, "seed": seed, "config": written}


def _is_built(place: pathlib.Path, manifest: Mapping[str, object]) -> bool:
  """Returns whether the world is already built.

  Raises:
    UserError: The directory holds something else.
  """
  if not place.exists() or not any(place.iterdir()):
    return False
  try:
    found = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    found = {}
  if found == manifest:
    return True
  differing = sorted(
    key
    for key in ("version", "seed", "config")
    if found.get(key) != manifest[key]
  )
  raise errors.UserError(
    f"directory={str(place.parent)!r} already has a"
    f" {place.name}/ that is not the requested mini world (it differs in"
    f" {', '.join(differing)}; seed {found.get('seed')} there,"
    f" {manifest['seed']} requested); delete {place} or choose another"
    " directory"
  )


def _write_world(place: pathlib.Path, seed: int, config: WorldConfig) -> None:
  """Writes all files of a world to an empty directory."""
  world = draw_world(seed, config)
  train_rows = _write_items(place, world)
  early_rows = _write_early_lessons(place, world)
  questions = [{"text": row["question"]} for row in train_rows]
  _write_rows(place / "text" / "train.jsonl", questions)

  solutions = _random_solutions(world, seed, config)
  student = vocabulary.train_student(
    _student_texts([*train_rows, *early_rows], solutions),
    vocab_size=config.student_vocab_size,
  )
  (place / "student.model").write_bytes(student)
  tokenizer = _teacher_tokenizer(world, solutions, config)
  _write_text(place / "teacher_tokenizer.json", tokenizer)

  num_records = (
    config.train_size + config.validation_size
  ) * config.samples_per_question
  if num_records:
    with (
      progress.Progress(num_records, "samples", title="mini teacher") as bar,
      store.RecordWriter(place / "records") as writer,
    ):
      for record in _sample_records(world, tokenizer, seed, config):
        writer.append(record)
        bar.advance()


def _write_items(place: pathlib.Path, world: World) -> list[lessons.Row]:
  """Writes the files of families and tasks; returns the training rows."""
  train_rows: list[lessons.Row] = []
  for name, by_split in {**world.maths, **world.general}.items():
    for split in splits.SPLITS:
      rows = [lessons.row_of(item) for item in by_split[split]]
      _write_rows(place / name / f"{split}.jsonl", rows)
      if split == "train":
        train_rows += rows
  return train_rows


def _student_texts(
  rows: Sequence[lessons.Row], solutions: Sequence[str]
) -> list[str]:
  """Returns the texts that the student reads and writes in training."""
  zero_shot = (
    formats.ZERO_SHOT_ANSWER_ONLY,
    formats.ZERO_SHOT_CHAIN_OF_THOUGHT,
  )
  texts = list(solutions)
  for row in rows:
    for data_format in zero_shot:
      texts.append(formats.render_question(row["question"], data_format))
      texts.append(
        formats.render_target(data_format, row["rationale"], row["answer"])
      )
  return texts


def _teacher_tokenizer(
  world: World, solutions: Sequence[str], config: WorldConfig
) -> str:
  """Trains the teacher's tokenizer, with beginnings of sentences repeated.

  In a large vocabulary the first words of sentences are single tokens. The
  repetition makes them so in this small one, while large numbers and nouns
  remain rare and are split.
  """
  style = styles.find(config.style)
  train = world.maths[stories.FAMILY]["train"]
  leads = [
    lead for problem in train for lead in grammar.leads_of(problem, style)
  ]
  return vocabulary.train_teacher(
    [*solutions, *(leads * _LEAD_REPEATS)], vocab_size=config.teacher_vocab_size
  )


def _random_solutions(
  world: World, seed: int, config: WorldConfig
) -> list[str]:
  """Samples a solution of each training problem, with some wrong numbers."""
  rng = random.Random(f"{seed}/tokenizers")
  style = styles.find(config.style)
  return [
    grammar.random_solution(
      grammar.Grammar(problem, mistake_rate=0.1, style=style), rng
    )
    for problem in world.maths[stories.FAMILY]["train"]
  ]


def _sample_records(
  world: World, tokenizer: str, seed: int, config: WorldConfig
) -> Iterator[schema.TeacherRecord]:
  """Yields the teacher's samples, question by question."""
  mini_teacher = teacher.MiniTeacher(
    vocabulary.TeacherTokenizer.from_json(tokenizer),
    mistake_rate=config.mistake_rate,
    style=styles.find(config.style),
  )
  family = world.maths[stories.FAMILY]
  for problem in (*family["train"], *family["validation"]):
    yield from mini_teacher.sample(
      problem,
      config.samples_per_question,
      temperature=config.temperature,
      seed=seed,
    )


def _write_rows(path: pathlib.Path, rows: Sequence[Mapping]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  _write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_text(path: pathlib.Path, text: str) -> None:
  path.write_text(text, encoding="utf-8")
