"""Shows questions with the answers of the teacher and of both models.

The first question of each kind in the order of the test set is shown, so the
examples are not cherry-picked.
"""

import html
from collections.abc import Mapping, Sequence

from specialize_jax.reports import blocks, tables
from specialize_jax.reports import results as results_lib

_MAX_CHARACTERS = 600
_CUES = ("Let's think step by step", "A:")
Row = Mapping[str, object]


def examples(results: results_lib.Results) -> list[blocks.Block]:
  """Selects example predictions.

  Of each task in and out of distribution it shows one that became correct and
  one that is still wrong; of general tasks, ones that became wrong and one that
  is still correct.

  Args:
    results: a loaded results directory.

  Returns:
    The blocks; empty without predictions.
  """
  after = results.predictions["after"]
  targets = [results.in_distribution, *results.out_of_distribution]
  targets += results.other if not results.general else ()
  targets = [task for task in targets if task in after]
  general = [task for task in results.general if task in after]
  groups = (
    ("Right", "Wrong before, right after.", targets, (False, True), None),
    ("Wrong", "Wrong before and after.", targets, (False, False), None),
    ("Lost", "Right before, wrong after.", general, (True, False), 2),
    ("Kept", "Right before and after.", general, (True, True), 1),
  )
  # Without an evaluation after it, the predictions are the run's own.
  before = results.predictions["before"]
  if not before or (results.run and not results.after):
    before = {}
    groups = (
      ("Right", "Right answers.", [*targets, *general], (False, True), 3),
      ("Wrong", "Wrong answers.", [*targets, *general], (False, False), 3),
    )
  made: list[blocks.Block] = []
  for title, what, tasks, kind, limit in groups:
    cards = [
      card
      for task in tasks
      if (card := _pick(before, after, task, kind)) is not None
    ][:limit]
    if cards:
      made += [
        blocks.Heading(title),
        blocks.Text(f"{what} The first such question of each test set."),
        blocks.Markup(
          html='<div class="examples">'
          + "".join(_html(*card) for card in cards)
          + "</div>",
          markdown="\n\n".join(_markdown(*card) for card in cards),
        ),
      ]
  return made


# A heading, the question without demonstrations, and texts, each with its
# author and whether it is correct (None if it is not graded).
_Card = tuple[str, str, Sequence[tuple[str, str, bool | None]]]


def _pick(
  all_before: Mapping[str, Sequence[Row]],
  all_after: Mapping[str, Sequence[Row]],
  task: str,
  wanted: tuple[bool, bool],
) -> _Card | None:
  """Returns the first question with a given pair of verdicts, or None.

  Where nothing was evaluated before, the first of the pair does not count.
  """
  before = {row["question_id"]: row for row in all_before.get(task, ())}
  for row in all_after[task]:
    if "correct" not in row:
      return None  # the task's metrics judge no single prediction
    earlier = before.get(row["question_id"])
    was_right = wanted[0]
    if all_before:
      if earlier is None or "correct" not in earlier:
        continue
      was_right = bool(earlier["correct"])
    if (was_right, bool(row["correct"])) == wanted:
      return _card(task, earlier, row)
  return None


def _card(task: str, before: Row | None, after: Row) -> _Card:
  dataset, data_format = tables.label(task)
  head = f"{dataset}{', ' if data_format else ''}{data_format}"
  said = []
  reference = str(after.get("reference") or "").strip()
  if reference:
    # In the mini world, the reference is the teacher's likeliest solution.
    who = "teacher" if task.startswith("mini_") else "reference"
    said.append((who, reference, None))
  if before:
    said.append(("before", _prediction(before), bool(before["correct"])))
  who = "student" if reference else "after"
  said.append((who, _prediction(after), bool(after["correct"])))
  said.append(("target", str(after["target"]), None))
  head = f"{head} · {after['question_id']}"
  return head, _question(str(after["prompt"])), said


def _html(
  head: str, question: str, said: Sequence[tuple[str, str, bool | None]]
) -> str:
  parts = "".join(
    f'<div class="said said-{who}"><div class="who">{who}</div>'
    f'<div class="{_verdict(right)}">{html.escape(_shown(text))}</div></div>'
    for who, text, right in said
  )
  return (
    f'<div class="example"><div class="head">{html.escape(head)}</div>'
    f'<div class="question">{html.escape(_shown(question))}</div>'
    f'<div class="beside">{parts}</div></div>'
  )


def _markdown(
  head: str, question: str, said: Sequence[tuple[str, str, bool | None]]
) -> str:
  lines = [f"**{blocks.plain(head)}**", blocks.code(_shown(question))]
  for who, text, right in said:
    verdict = _verdict(right)
    lines += [
      f"{who}{f' ({verdict})' if verdict else ''}:",
      blocks.code(_shown(text)),
    ]
  return "\n\n".join(lines)


def _verdict(right: bool | None) -> str:
  return "" if right is None else "right" if right else "wrong"


def _prediction(row: Row) -> str:
  return str(row["prediction"]).strip() or "(nothing)"


def _question(prompt: str) -> str:
  """Returns the last question of a prompt, without demonstrations and cues."""
  question = prompt.rsplit("Q: ", 1)[-1]
  for cue in _CUES:
    question = question.strip().removesuffix(cue)
  return question.strip()


def _shown(text: str) -> str:
  return text[:_MAX_CHARACTERS] + " …" if len(text) > _MAX_CHARACTERS else text
