"""Two specialized models are compared by question."""

import json

import pytest

from specialize_jax.evaluation import intervals
from specialize_jax.reports import blocks, comparison_view
from specialize_jax.study import comparison

TASKS = {
  "in_distribution": ["mini_gsm_zero_shot_chain_of_thought_v1"],
  "out_of_distribution": [
    "mini_svamp_zero_shot_chain_of_thought_v1",
    "mini_asdiv_zero_shot_chain_of_thought_v1",
  ],
  "general": [],
}


def write(directory, **right):
  """Writes 40 verdicts a family, the first of them right."""
  for name, count in right.items():
    path = directory / f"mini_{name}_zero_shot_chain_of_thought_v1.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
      "".join(
        json.dumps({"question_id": f"{name}/{n}", "correct": n < count}) + "\n"
        for n in range(40)
      )
    )
  return directory


@pytest.fixture
def rows(tmp_path):
  return comparison.compare(
    write(tmp_path / "a", gsm=30, svamp=20, asdiv=10),
    write(tmp_path / "b", gsm=10, svamp=20, asdiv=20),
    tasks=TASKS,
  )


def test_differences_are_first_minus_second_with_means_of_a_role(rows):
  found = [(row["task"], row["first"], row["second"], row["n"]) for row in rows]
  assert found == [
    (TASKS["in_distribution"][0], 0.75, 0.25, 40),
    (TASKS["out_of_distribution"][0], 0.5, 0.5, 40),
    (TASKS["out_of_distribution"][1], 0.25, 0.5, 40),
    (None, 0.375, 0.5, 80),
  ]
  estimates = [row["difference"]["estimate"] for row in rows]
  assert estimates == pytest.approx([0.5, 0.0, -0.25, -0.125])
  assert rows[0]["difference"]["low"] > 0 > rows[3]["difference"]["high"]
  # The same questions are right: of 40, a share of others could differ unseen.
  unseen = intervals.wilson(0, 40).high
  assert rows[1]["difference"]["low"] == -unseen
  assert rows[1]["difference"]["high"] == unseen


def test_a_summary_says_who_is_ahead_and_where(rows):
  compared = {
    "name": "sample matching",
    "steps": {"first": 640, "second": 480},
    "rows": rows,
  }
  text = comparison_view.summary(compared)
  assert "In distribution: the specialized model is ahead (+50.0" in text
  assert "Out of distribution: the other model is ahead (\u221212.5" in text
  assert "step 480" in text
  html = "".join(map(blocks.to_html, comparison_view.blocks_of(compared)))
  assert "mini SVAMP" in html
  assert "mean, out of distribution" in html
  shown = comparison_view.terminal(compared)
  assert len(shown.splitlines()) == 1 + len(rows)
  same = {**compared, "rows": [rows[1]]}
  assert "no difference that this many questions could show" in (
    comparison_view.summary(same)
  )


def test_other_questions_are_not_compared(tmp_path, rows):
  path = tmp_path / "b" / f"{TASKS['in_distribution'][0]}.jsonl"
  path.write_text(path.read_text().replace("gsm/3", "gsm/x3"))
  with pytest.raises(ValueError, match="different questions"):
    comparison.compare(tmp_path / "a", tmp_path / "b", tasks=TASKS)
