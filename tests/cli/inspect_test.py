import functools
import re

import pytest
from testdata import real_files, tiny_world

from specialize_jax.cli import inspect as inspect_
from specialize_jax.cli import main
from specialize_jax.data import preparation, sources


@pytest.fixture
def real():
  return [
    f"--records={real_files.find('codex', 'gsm8k_train_0.json')}",
    f"--vocabulary={real_files.find('tokenizers', 't5_spiece.model')}",
  ]


def test_a_real_sample_is_drawn_whole(real, tmp_path, capsys):
  page = tmp_path / "sample.html"
  assert main.run("inspect", [*real, "--sample=3", f"--html={page}"]) == 0
  shown = capsys.readouterr().out
  assert "sample 3, marginal" in shown
  assert "│" in shown and re.search(r"\b0\.\d{3}\b", shown)
  text = page.read_text()
  assert "<svg" in text and 'class="piece"' in text
  assert "Markup(" not in text
  assert "<script" not in text and not re.search(r'(src|href)="http', text)


def test_a_task_s_example_is_shown_as_the_model_sees_it(tmp_path, capsys):
  world = tiny_world.build(tmp_path / "world")
  preparation.prepare(
    preparation.Preparation(
      records=tiny_world.write_records(world, tmp_path / "records"),
      vocabulary=f"{world}/mini/student.model",
      mode="whitespace",
      data_dir=f"{world}/tfds",
      dataset_name="mini_gsm_teacher",
      read_questions=functools.partial(
        preparation.questions_of_files, f"{world}/mini/mini_gsm/train.jsonl"
      ),
    )
  )
  task = "mini_gsm_teacher_in_context_chain_of_thought_v1"
  try:
    assert main.run("inspect", [f"--task={task}", f"--data_dir={world}"]) == 0
  finally:
    sources.set_data_dir(None)
  shown = capsys.readouterr().out
  assert "with the teacher's distribution" in shown
  assert shown.count("</s>") == 2


@pytest.mark.parametrize(
  ("argv", "sentence"),
  [
    ([], "nothing to show"),
    (["--records=x"], "--records needs --vocabulary"),
  ],
)
def test_missing_flags_are_named(argv, sentence, capsys):
  assert main.run("inspect", argv) == 2
  assert sentence in capsys.readouterr().err


def test_a_sample_that_is_not_there_is_named(real, capsys):
  assert main.run("inspect", [*real, "--sample=40"]) == 2
  assert "--sample=40" in capsys.readouterr().err


def test_a_negative_sample_is_refused(real, capsys):
  with pytest.raises(SystemExit, match="2"):
    main.run("inspect", [*real, "--sample=-1"])
  assert "--sample: '-1' is not possible" in capsys.readouterr().err


def test_tokens_that_end_within_a_character_are_legible_together():
  spelling = "이것은".encode()
  tokens = [spelling[i : i + 2] for i in range(0, len(spelling), 2)]
  assert inspect_._legible(tokens) == ["…", "이…", "것", "…", "은"]
  assert inspect_._legible([b"a", b"\xec"]) == ["a", "\ufffd"]
