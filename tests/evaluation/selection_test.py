"""Selection is right by construction: the curves are made up."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.evaluation import history as history_lib
from specialize_jax.evaluation import selection

OOD = ("multiarith", "asdiv", "svamp")


def _history(in_distribution, *out_of_distribution):
  """Curves by task to values by step 100, 200, ..."""
  curves = dict(
    zip(("gsm8k", *OOD), (in_distribution, *out_of_distribution), strict=True)
  )
  return {
    100 * (index + 1): {f"{t}/accuracy": c[index] for t, c in curves.items()}
    for index in range(len(in_distribution))
  }


def test_the_best_out_of_distribution_mean_is_chosen():
  history = _history(
    [0.1, 0.2, 0.3, 0.4],
    [0.2, 0.9, 0.4, 0.3],
    [0.2, 0.1, 0.6, 0.3],
    [0.2, 0.1, 0.5, 0.3],
  )
  chosen = selection.select(history, OOD, "gsm8k")
  # One peak of a single task does not decide: the mean does.
  assert chosen.step == 300
  assert chosen.mean == pytest.approx(0.5)
  assert chosen.in_distribution_step == 400
  assert chosen.in_distribution_accuracy == pytest.approx(0.4)
  assert chosen.in_distribution_mean == pytest.approx(0.3)
  assert chosen.means[200] == pytest.approx(1.1 / 3)


@given(
  st.lists(
    st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])] * 4),
    min_size=1,
    max_size=12,
  )
)
def test_whatever_the_curves_the_earliest_best_mean_is_chosen(rows):
  history = _history(*zip(*rows, strict=True))
  chosen = selection.select(history, OOD, "gsm8k")
  means = [sum(row[1:]) / 3 for row in rows]
  assert chosen.step == 100 * (1 + means.index(max(means)))
  inside = [row[0] for row in rows]
  assert chosen.in_distribution_step == 100 * (1 + inside.index(max(inside)))
  # The other rule never gains on what this one chooses by.
  assert chosen.mean >= chosen.in_distribution_mean


def test_means_over_fewer_questions_are_ignored():
  history = {
    step: {f"{task}/accuracy": accuracy for task in OOD}
    | {f"{task}/n": float(n) for task in OOD}
    for step, accuracy, n in ((100, 0.9, 50), (200, 0.4, 500), (300, 0.5, 500))
  }
  assert list(selection.alike(history, OOD)) == [200, 300]
  assert list(selection.alike(_history(*[[0.1, 0.2]] * 4), OOD)) == [100, 200]


def test_of_equal_means_the_earliest_step_wins():
  history = _history([0.1, 0.5, 0.5], *[[0.3, 0.5, 0.5]] * 3)
  chosen = selection.select(dict(reversed(history.items())), OOD, "gsm8k")
  assert (chosen.step, chosen.in_distribution_step) == (200, 200)


def test_steps_without_any_of_the_tasks_are_ignored():
  history = {0: {"loss": 3.0}, **_history([0.1], [0.2], [0.2], [0.2])}
  assert selection.select(history, OOD).step == 100
  assert selection.select(history, OOD).in_distribution_step is None


def test_a_step_that_lacks_one_task_is_an_error():
  history = _history([0.1, 0.2], *[[0.3, 0.4]] * 3)
  del history[200]["svamp/accuracy"]
  with pytest.raises(errors.UserError, match="step 200 has no accuracy of sva"):
    selection.select(history, OOD)


def test_an_accuracy_that_is_not_a_number_is_an_error():
  history = _history([0.1], [0.2], [float("nan")], [0.2])
  with pytest.raises(errors.UserError, match=r"asdiv \(got nan\)"):
    selection.select(history, OOD)


def test_a_task_never_evaluated_names_the_near_ones():
  history = _history([0.1], [0.2], [0.2], [0.2])
  with pytest.raises(errors.UserError, match="'svmp'.*did you mean svamp"):
    selection.select(history, ["svmp"])
  with pytest.raises(errors.UserError, match="out_of_distribution is empty"):
    selection.select(history, [])


def test_the_papers_roles_are_found_by_name():
  suffix = "_zero_shot_chain_of_thought_v1"
  tasks = [f"mini_{t}{suffix}" for t in ("gsm", *OOD, "navigate")]
  tasks += ["mini_svamp_zero_shot_answer_only_v1"]
  assert selection.default_tasks(tasks) == (
    [f"mini_{t}{suffix}" for t in ("asdiv", "multiarith", "svamp")],
    f"mini_gsm{suffix}",
  )
  assert selection.default_tasks(["gsm8k" + suffix])[1] == "gsm8k" + suffix
  assert selection.default_tasks(["navigate"]) == ([], None)


def test_a_selection_survives_json():
  history = _history([0.1, 0.2], *[[0.3, 0.4]] * 3)
  chosen = selection.select(history, OOD, "gsm8k").as_json()
  row = json.loads(json.dumps(chosen))
  assert row["step"] == 200
  assert row["means"]["100"] == pytest.approx(0.3)


def test_history_keeps_the_later_row_and_ignores_an_incomplete_last_line(
  tmp_path,
):
  path = tmp_path / "metrics.jsonl"
  rows = [
    {"step": 2, "group": "evaluation", "values": {"a/accuracy": 0.5}},
    {"step": 1, "group": "evaluation", "values": {"a/accuracy": 0.1}},
    {"step": 2, "group": "evaluation", "values": {"a/accuracy": 0.6}},
    {"step": 2, "group": "train", "values": {"loss": 1.0}},
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_text(lines + '{"step": 3, "gro')
  history = history_lib.read(path)
  assert list(history.items()) == [
    (1, {"a/accuracy": 0.1}),
    (2, {"a/accuracy": 0.6}),
  ]
  assert history_lib.curve(history, "a/accuracy") == ([1, 2], [0.1, 0.6])
  assert history_lib.names(history_lib.read(path, "train")) == ["loss"]


def test_history_names_the_line_that_is_not_a_row(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2, "group": "train", "values": {}}\n')
  with pytest.raises(errors.UserError, match="metrics.jsonl, line 1 is not"):
    history_lib.read(path)
  with pytest.raises(errors.UserError, match="there is no .*absent.jsonl"):
    history_lib.read(tmp_path / "absent.jsonl")
