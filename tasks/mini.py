"""The mini world: small word problems with an exact teacher.

Example problem of `mini_gsm`:

  Tom has 3 apples. He buys 4 apples. Each apple costs 2 dollars. How many
  dollars are his apples worth?

Tasks, with FORMAT one of the four formats:

  mini_gsm_teacher_FORMAT_v1         distillation from the exact teacher
  mini_{gsm,...}_FORMAT_v1           evaluation; see MATHS
  mini_{navigate,...}_FORMAT_v1      evaluation; see GENERAL
  mini_{navigate,...}_pretrain_FORMAT_v1, mini_facts_v1,
  mini_weak_maths_v1, mini_sums_v1, mini_reading_v1,
  mini_text_span_corruption_v1       general pre-training

`specialize_jax.mini.world` writes the files.
"""

import dataclasses
import functools

from specialize_jax.cot import formats
from specialize_jax.data import (
  preprocessors,
  questions,
  sources,
  span_corruption,
  task_parts,
  teacher_source,
  vocabularies,
)
from specialize_jax.evaluation import metrics

VOCABULARY = vocabularies.mini()

IN_DISTRIBUTION = "mini_gsm"
OUT_OF_DISTRIBUTION = ("mini_multiarith", "mini_asdiv", "mini_svamp")
MATHS = (IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION)
GENERAL = (
  "mini_boolean_expressions",
  "mini_word_sorting",
  "mini_object_counting",
  "mini_navigate",
)


def _source(dataset: str, salt: str, *splits: str) -> sources.TableSource:
  return sources.TableSource(
    lambda split: questions.to_columns(
      questions.read_questions(sources.find(f"mini/{dataset}/{split}.jsonl"))
    ),
    splits=splits,
    description=dataset,
    salt=salt,
  )


def _demonstrations(dataset: str) -> list[formats.Demonstration]:
  """Gives training problems to show; of maths, those of one step.

  Four of them and a question then fit 256 tokens, which two cores attend to
  in two thirds of the time that stories of any length would take.
  """
  path = sources.find(f"mini/{dataset}/train.jsonl")
  shown = questions.to_demonstrations(questions.read_questions(path))
  if dataset not in MATHS:
    return shown
  return [one for one in shown if one.rationale.count("=") == 1]


def _read_lesson(lesson: str, split: str) -> sources.Columns:
  return questions.read_formatted(sources.find(f"mini/{lesson}/{split}.jsonl"))


def _add_evaluation(dataset: str, shown: str, metric: metrics.Accuracy) -> None:
  """Registers a dataset in all formats; `shown` gives demonstrations."""
  for data_format in formats.FORMATS:
    task_parts.add_once(
      f"{dataset}_{data_format.name}_v1",
      **task_parts.evaluation(
        _source(dataset, data_format.name, "validation", "test"),
        VOCABULARY,
        data_format=data_format,
        read_demonstrations=functools.partial(_demonstrations, shown),
      ),
      postprocess_fn=metrics.keep_answer,
      metric_fns=[
        dataclasses.replace(
          metric, chain_of_thought=data_format.chain_of_thought
        )
      ],
    )


for _family in MATHS:
  _add_evaluation(_family, IN_DISTRIBUTION, metrics.number_accuracy)

for _format in formats.FORMATS:
  task_parts.add_once(
    f"{IN_DISTRIBUTION}_teacher_{_format.name}_v1",
    **task_parts.distillation(
      teacher_source.TeacherSource(
        f"{IN_DISTRIBUTION}_teacher",
        VOCABULARY,
        one_per_question=not _format.chain_of_thought,
        salt=_format.name,
      ),
      VOCABULARY,
      data_format=_format,
      read_demonstrations=functools.partial(_demonstrations, IN_DISTRIBUTION),
    ),
  )

for _task in GENERAL:
  _add_evaluation(_task, _task, metrics.exact_accuracy)
  for _format in formats.FORMATS:
    task_parts.add_once(
      f"{_task}_pretrain_{_format.name}_v1",
      **task_parts.pretraining(
        _source(_task, _format.name, "train", "validation"),
        VOCABULARY,
        to_text=[
          task_parts.rendering(
            _format, functools.partial(_demonstrations, _task)
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
