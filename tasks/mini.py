"""The mini world: small word problems with an exact teacher.

Example problem of `mini_gsm`:

  Max has 3 bags with 6 stamps each. He loses 2 stamps. How many stamps does Max
  have now?

Tasks, with FORMAT one of the four formats:

  mini_gsm_teacher_FORMAT_v1         distillation from the exact teacher
  mini_{gsm,...}_FORMAT_v1           evaluation; see MATHS
  mini_{navigate,...}_FORMAT_v1      evaluation; see GENERAL
  mini_{navigate,...}_pretrain_FORMAT_v1, mini_facts_v1,
  mini_weak_maths_v1, mini_weak_maths_FORMAT_v1, mini_sums_v1, mini_reading_v1,
  mini_text_span_corruption_v1       general pre-training

`specialize_jax.mini.world` writes the files.
"""

import functools

from specialize_jax.cot import answer_rules, formats
from specialize_jax.data import (
  preparation,
  preprocessors,
  questions,
  record_filter,
  sources,
  span_corruption,
  task_parts,
)
from specialize_jax.datasets import description, registration

# Demonstrations in an in-context prompt. With the paper's four it is six times
# as long as a question, and a small student would see too few in minutes.
NUM_DEMONSTRATIONS = 1

IN_DISTRIBUTION = "mini_gsm"
OUT_OF_DISTRIBUTION = ("mini_multiarith", "mini_asdiv", "mini_svamp")
MATHS = (IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION)
GENERAL = (
  "mini_boolean_expressions",
  "mini_word_sorting",
  "mini_object_counting",
  "mini_navigate",
)


def _read(dataset: str, split: str) -> list[questions.Question]:
  return questions.read_questions(sources.find(f"mini/{dataset}/{split}.jsonl"))


def _demonstrations(dataset: str) -> list[formats.Demonstration]:
  """Returns training problems as demonstrations; for maths, of one step only.

  A demonstration and a question then fit into 96 tokens.
  """
  shown = questions.to_demonstrations(_read(dataset, "train"))
  if dataset not in MATHS:
    return shown
  return [one for one in shown if one.rationale.count("=") == 1]


def _benchmark(dataset: str, shown: str, kind: str) -> description.Benchmark:
  """Describes a benchmark whose demonstrations are from `shown`."""
  return description.Benchmark(
    name=dataset,
    read=functools.partial(_read, dataset),
    answer=answer_rules.AnswerRule(kind=kind),
    read_demonstrations=functools.partial(_demonstrations, shown),
  )


def _training(path: str | None = None) -> record_filter.TrainingQuestions:
  return preparation.questions_of_files(
    path or sources.find(f"mini/{IN_DISTRIBUTION}/train.jsonl")
  )


DATASET = description.Dataset(
  name="mini",
  vocabulary=description.Vocabulary(path="mini/student.model", extra_ids=16),
  in_distribution=_benchmark(IN_DISTRIBUTION, IN_DISTRIBUTION, "number"),
  out_of_distribution=tuple(
    _benchmark(name, IN_DISTRIBUTION, "number") for name in OUT_OF_DISTRIBUTION
  ),
  general=tuple(_benchmark(name, name, "exact") for name in GENERAL),
  read_training=_training,
  num_demonstrations=NUM_DEMONSTRATIONS,
)
registration.add(DATASET)

VOCABULARY = registration.vocabulary_of(DATASET)


def _source(dataset: str, salt: str, *splits: str) -> sources.TableSource:
  return sources.TableSource(
    lambda split: questions.to_columns(_read(dataset, split)),
    splits=splits,
    description=dataset,
    salt=salt,
  )


def _read_lesson(lesson: str, split: str) -> sources.Columns:
  return questions.read_formatted(sources.find(f"mini/{lesson}/{split}.jsonl"))


for _task in GENERAL:
  for _format in formats.FORMATS:
    task_parts.add_once(
      f"{_task}_pretrain_{_format.name}_v1",
      **task_parts.pretraining(
        _source(_task, _format.name, "train", "validation"),
        VOCABULARY,
        to_text=[
          task_parts.rendering(
            _format,
            functools.partial(_demonstrations, _task),
            NUM_DEMONSTRATIONS,
          ),
          preprocessors.tokenize,
        ],
      ),
    )

for _lesson in ("facts", "weak_maths", "sums", "reading"):
  task_parts.add_once(
    f"mini_{_lesson}_v1",
    **task_parts.pretraining(
      sources.TableSource(
        functools.partial(_read_lesson, _lesson),
        splits=["train"],
        description=f"mini {_lesson}",
      ),
      VOCABULARY,
      to_text=[preprocessors.render_by_row, preprocessors.tokenize],
    ),
  )

# The same one-step problems in any format, after demonstrations too.
for _format in formats.FORMATS:
  task_parts.add_once(
    f"mini_weak_maths_{_format.name}_v1",
    **task_parts.pretraining(
      _source("weak_maths", _format.name, "train"),
      VOCABULARY,
      to_text=[
        task_parts.rendering(
          _format,
          functools.partial(_demonstrations, IN_DISTRIBUTION),
          NUM_DEMONSTRATIONS,
        ),
        preprocessors.tokenize,
      ],
    ),
  )

task_parts.add_once(
  "mini_text_span_corruption_v1",
  **task_parts.pretraining(
    sources.TableSource(
      lambda split: questions.read_texts(
        sources.find(f"mini/text/{split}.jsonl")
      ),
      splits=["train"],
      description="mini text",
    ),
    VOCABULARY,
    to_text=[span_corruption.span_corruption],
  ),
)
