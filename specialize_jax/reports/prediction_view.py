"""A few questions with what the model said before and after."""

import html
from collections.abc import Mapping, Sequence

from specialize_jax.reports import results as results_lib
from specialize_jax.reports import tables

_MAX_CHARACTERS = 600
_CUES = ("Let's think step by step", "A:")
Row = Mapping[str, object]


def examples(results: results_lib.Results) -> str:
  """Gives some predictions of each role as HTML, the telling ones first.

  Of the tasks in and out of distribution it shows one that was mended and
  one still wrong; of the general tasks one that was lost and one kept. It
  shows the first of each kind, so the choice flatters nobody.

  Args:
    results: a loaded results directory.

  Returns:
    HTML, empty if no prediction was kept.
  """
  after = results.predictions["after"]
  targets = [results.in_distribution, *results.out_of_distribution]
  cards = []
  for task in filter(after.__contains__, targets):
    cards += _pick(results, task, ((False, True), (False, False)))
  general = [task for task in results.general if task in after]
  lost = [_pick(results, task, ((True, False),)) for task in general]
  kept = [_pick(results, task, ((True, True),)) for task in general]
  cards += sum([*lost[:2], *kept[:1]], [])
  if not cards:
    return ""
  return (
    "<p>The first question of each kind, in the order of the test set: "
    "wrong before and right after, wrong in both, and, of the general tasks, "
    f'right before.</p><div class="examples">{"".join(cards)}</div>'
  )


def _pick(
  results: results_lib.Results,
  task: str,
  kinds: Sequence[tuple[bool, bool]],
) -> list[str]:
  """One card for each wanted pair of verdicts that the task has."""
  before = {
    row["question_id"]: row
    for row in results.predictions["before"].get(task, ())
  }
  cards = []
  for wanted in kinds:
    for row in results.predictions["after"][task]:
      earlier = before.get(row["question_id"])
      was_right = bool(earlier["correct"]) if earlier else wanted[0]
      if (was_right, bool(row["correct"])) == wanted:
        cards.append(_card(task, earlier, row))
        break
  return cards


def _card(task: str, before: Row | None, after: Row) -> str:
  dataset, data_format = tables.label(task)
  said = _said("before", before) if before else ""
  return (
    f'<div class="example"><div class="head">{html.escape(dataset)}'
    f"{', ' if data_format else ''}{html.escape(data_format)} · "
    f"{html.escape(str(after['question_id']))}</div>"
    f'<div class="question">{_text(_question(str(after["prompt"])))}</div>'
    f"<dl>{said}{_said('after', after)}<dt>target</dt>"
    f"<dd>{_text(str(after['target']))}</dd></dl></div>"
  )


def _said(when: str, row: Row) -> str:
  verdict = "right" if row["correct"] else "wrong"
  text = str(row["prediction"]).strip() or "(nothing)"
  return f'<dt>{when}</dt><dd class="{verdict}">{_text(text)}</dd>'


def _question(prompt: str) -> str:
  """The last question of a prompt, without demonstrations and cues."""
  question = prompt.rsplit("Q: ", 1)[-1]
  for cue in _CUES:
    question = question.strip().removesuffix(cue)
  return question


def _text(text: str) -> str:
  if len(text) > _MAX_CHARACTERS:
    text = text[:_MAX_CHARACTERS] + " …"
  return html.escape(text)
