"""Every gold answer of the real benchmarks is read back as it is meant."""

import json
import os
import pathlib
from xml.etree import ElementTree

import pytest

from specialize_jax import errors
from specialize_jax.cot import answers
from specialize_jax.evaluation import benchmarks

DATA = pathlib.Path(
  os.environ.get(
    "SPECIALIZE_DATA",
    pathlib.Path(__file__).parents[3] / "shared" / "data",
  )
)


def _path(name):
  path = DATA / name
  if not path.exists():
    pytest.skip(f"the real data are absent: there is no {path}")
  return path


def _right(prediction, target, benchmark):
  kind = benchmarks.kind(benchmark)
  return answers.grade(prediction, target, kind=kind).correct


def test_every_gsm8k_solution_answers_itself():
  for split in ("train", "test"):
    for line in _path(f"gsm8k/{split}.jsonl").read_text().splitlines():
      solution = json.loads(line)["answer"]
      gold = solution.rpartition("####")[2].strip()
      assert answers.extract_number(solution) == gold.replace(",", "")
      sentence = f"She has 3. So the answer is ${gold}. Done in 2 steps."
      assert _right(sentence, solution, "gsm8k")
      assert not _right(sentence.replace("is $", "is $1"), gold, "gsm8k")


def test_every_multiarith_and_svamp_answer_is_read():
  rows = json.loads(_path("multiarith/MultiArith.json").read_text())
  for row in rows:
    gold = str(row["lSolutions"][0])
    text = f"The answer is {row['lSolutions'][0]:g}"
    assert _right(text, gold, "multiarith")
  for row in json.loads(_path("svamp/SVAMP.json").read_text()):
    assert _right(f"A: {row['Answer']}", str(row["Answer"]), "svamp")


def test_every_asdiv_answer_is_read_before_its_unit():
  root = ElementTree.parse(_path("asdiv/ASDiv.xml")).getroot()
  golds = [problem.findtext("Answer") for problem in root.iter("Problem")]
  numbers = [g for g in golds if g.split(" (")[0].replace(".", "").isdigit()]
  assert len(numbers) > 2000
  for gold in numbers:
    number = gold.split(" (")[0]
    assert _right(f"There are {number} of 77. A: {number}", gold, "asdiv")


def test_there_are_27_tasks_and_every_target_answers_itself():
  names = {path.stem for path in _path("bbh").glob("*.json")}
  assert names == set(benchmarks.BIG_BENCH_HARD)
  for task in sorted(names):
    examples = json.loads(_path(f"bbh/{task}.json").read_text())["examples"]
    targets = [example["target"] for example in examples]
    for target, other in zip(targets, targets[1:], strict=False):
      for text in (f"Well.\nSo the answer is {target}.", target):
        assert _right(text, target, f"bbh/{task}"), (task, target)
        if target != other:
          assert not _right(text, other, f"bbh/{task}"), (task, target)


def test_every_demonstration_of_big_bench_hard_ends_in_an_answer():
  for task in benchmarks.BIG_BENCH_HARD:
    prompt = _path(f"bbh/cot-prompts/{task}.txt").read_text()
    shown = prompt.split("-----\n")[1].split("\n\nQ: ")[1:]
    assert len(shown) == 3, task
    for demonstration in shown:
      gold = demonstration.rpartition("the answer is ")[2].strip()
      verdict = answers.grade(
        demonstration, gold, kind=benchmarks.BIG_BENCH_HARD[task]
      )
      assert verdict.correct, (task, gold, verdict)


def test_the_command_accepts_all_names():
  assert "gsm8k" in benchmarks.names()
  assert "bbh/word_sorting" in benchmarks.names()
  assert len(benchmarks.names()) == 31
  with pytest.raises(errors.UserError, match="did you mean bbh/word_sorting"):
    benchmarks.kind("bbh/word_sort")
