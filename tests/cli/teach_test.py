"""Errors of `specialize teach` are one sentence with a way out."""

import json
import pathlib
import re
import resource
import subprocess
import sys

import pytest
from testdata import local_teacher

from specialize_jax.cli import main
from specialize_jax.records import store

HASTY = ("--max_wait_seconds=0.01",)  # between two attempts
KEY = "sk-secret-0123456789"


@pytest.fixture
def questions(tmp_path):
  return local_teacher.write_questions(tmp_path / "questions.jsonl", 12)


@pytest.fixture
def teach(tmp_path, questions, capsys):
  """Runs the command in this process; gives status, output and errors."""

  def run(base_url, *flags):
    argv = local_teacher.argv(base_url, questions, tmp_path / "store", *flags)
    status = main.main(["teach", *argv, "--num_samples=4"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()

  run.store = tmp_path / "store"
  return run


def check_refused(result, *words):
  """Checks for one sentence, status 2, and that nothing was said beside it."""
  status, out, err = result
  assert status == 2
  assert not out
  assert len(err.splitlines()) == 1
  for word in words:
    assert word in err


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_an_endpoint_without_log_probs_is_told_at_once(teach, endpoint):
  with local_teacher.started("--script=" + ",".join(["no_log_probs"] * 9)) as u:
    check_refused(
      teach(u, f"--endpoint={endpoint}"),
      "without log-probabilities; distillation needs",
      "--logits_all true",
      "--max-logprobs",
      "--endpoint=chat",
    )
    assert local_teacher.stats(u)["requests"] <= 3
  assert not teach.store.exists()


@pytest.mark.parametrize("status", ["400", "403", "500"])
def test_a_server_that_refuses_log_probs_is_not_asked_again(teach, status):
  words = "--words=logprobs is not supported by this model"
  with local_teacher.started(f"--script={status}", words) as url:
    check_refused(teach(url), f"HTTP {status}: logprobs is not", "--logits_all")
    assert local_teacher.stats(url)["requests"] == 1
  assert not teach.store.exists()


@pytest.mark.parametrize(
  ("status", "hint"),
  [("401", "--api_key_env"), ("404", "check --base_url")],
)
def test_what_cannot_heal_stops_the_run_in_the_servers_words(
  teach, monkeypatch, status, hint
):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  with local_teacher.started(f"--script=ok,ok,{status}") as url:
    result = teach(url, "--concurrency=1")
    check_refused(
      result, f"HTTP {status}: the server says no to Bearer ***", hint
    )
    assert local_teacher.stats(url)["requests"] == 3
    assert KEY not in result[2]
    # What was finished before is kept, and the run goes on from there.
    assert len(list(store.read_records(teach.store))) == 8
    assert teach(url)[0] == 0
    local_teacher.check_whole(teach.store, 12, 4)
  for file in teach.store.iterdir():
    assert KEY not in file.read_text()


def test_a_server_that_asks_for_hours_stops_the_run(teach):
  with local_teacher.started(
    "--script=429_retry_after", "--retry_after=7200"
  ) as url:
    check_refused(teach(url), "asks to wait 7,200 s", "--max_wait_seconds=300")


def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(
  teach, monkeypatch
):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  with local_teacher.started() as other:
    place = f"--location={other}/completions?key={KEY}"
    for _ in range(2):
      with local_teacher.started("--script=302", place) as url:
        result = teach(url)
        check_refused(result, f"redirects to {other}", "give its --base_url")
        assert KEY not in result[2]
        assert local_teacher.stats(url)["requests"] == 1
    assert local_teacher.stats(other)["requests"] == 0
  assert not teach.store.exists()


@pytest.mark.parametrize(
  ("fault", "words"),
  [
    ("bomb", "goes on after 7,340,032 bytes"),
    ("endless", "goes on after 7,340,032 bytes"),
    ("brotli", "compressed by 'br'"),
    ("stream", "ask without stream"),
  ],
)
def test_an_answer_is_read_no_further_than_it_may_go(teach, fault, words):
  script = "--script=" + ",".join([fault] * 9)
  with local_teacher.started(script) as url:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_refused(teach(url, *HASTY), words)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert local_teacher.stats(url)["requests"] <= 3
  assert after - before < 128 << 10  # KiB: a bomb holds twice as much
  assert not teach.store.exists()


def test_samples_that_are_cut_off_are_stored_and_told(teach):
  with local_teacher.started("--finish_reason=length") as url:
    for _ in range(2):
      status, out, _ = teach(url)
      assert status == 0
      assert "48 not finished, which prepare drops" in out
  reasons = {r.finish_reason for r in store.read_records(teach.store)}
  assert reasons == {"length"}


def test_a_compressed_answer_is_read(teach):
  with local_teacher.started("--gzip") as url:
    assert teach(url)[0] == 0
    local_teacher.check_whole(teach.store, 12, 4)


def test_a_shape_that_is_the_servers_way_is_paid_for_once(teach):
  with local_teacher.started("--script=" + ",".join(["reasoning"] * 9)) as url:
    check_refused(teach(url, "--endpoint=chat"), "reasoning", "enable_thinking")
    assert local_teacher.stats(url)["requests"] == 1
  assert not teach.store.exists()


def test_answers_that_cannot_be_used_are_paid_for_a_few_times_only(teach):
  with local_teacher.started("--script=" + ",".join(["spaced"] * 9)) as url:
    check_refused(teach(url, "--endpoint=chat", *HASTY), "the tokens spell")
    assert local_teacher.stats(url)["requests"] == 3 + 4  # and four others once
  # Once others could be used, five times, and no question more than that.
  with local_teacher.started("--script=ok" + ",spaced" * 25) as url:
    result = teach(url, "--endpoint=chat", "--concurrency=1", *HASTY)
    check_refused(result, "5 questions in a row failed")
    assert local_teacher.stats(url)["requests"] == 26
  assert len(list(store.read_records(teach.store))) == 4


def test_answers_that_cannot_be_used_are_counted_in_the_budget(teach):
  flags = ("--endpoint=chat", "--concurrency=1", "--max_total_tokens=2600")
  with local_teacher.started("--script=ok" + ",spaced" * 25) as url:
    status, _, err = teach(url, *flags, *HASTY)
    assert status == 2 and "1 questions were given up" in err
    assert local_teacher.stats(url)["requests"] == 6


@pytest.mark.parametrize("status", ["400", "413", "422", "no_choices"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_prompt_that_is_refused_is_given_up_and_others_are_asked(
  teach, status, place
):
  """It may be too long; the next run asks for it first, and goes on, too."""
  # An answer without a choice is asked for again, as often as it may be.
  times = 1 if status.isdigit() else (3 if place == 0 else 5)
  script = ",".join(["ok"] * place + [status] * times)
  with local_teacher.started(f"--script={script}") as url:
    status_code, out, err = teach(url, "--concurrency=1", *HASTY)
  assert status_code == 2
  assert "44 of 48 samples" in out
  assert "4 of 48 samples are missing: 1 questions were given up" in err
  assert f"HTTP {status}" in err or "no choice" in err
  assert len(list(store.read_records(teach.store))) == 44


def test_a_run_goes_on_past_the_prompts_that_an_earlier_one_gave_up(teach):
  """They are the first that are missing, and more than may fail in a row."""
  script = ",".join(["ok"] + ["400"] * 7)
  with local_teacher.started(f"--script={script}") as url:
    status, out, _ = teach(url, "--concurrency=1", *HASTY)
    assert status == 2
    assert "20 of 48 samples" in out
  script = ",".join(["400", "ok"] + ["400"] * 6)
  with local_teacher.started(f"--script={script}") as url:
    status, out, _ = teach(url, "--concurrency=1", *HASTY)
    assert status == 2
    assert "24 of 48 samples" in out


@pytest.mark.parametrize("status", ["403", "451"])
def test_a_prompt_that_is_flagged_does_not_end_a_run_that_has_answers(
  teach, status
):
  with local_teacher.started(f"--script=ok,{status}") as url:
    code, out, err = teach(url, "--concurrency=1", *HASTY)
    assert code == 2
    assert "44 of 48 samples" in out
    assert f"HTTP {status}" in err
  # The next run asks it first.
  with local_teacher.started(f"--script={status}") as url:
    code, out, _ = teach(url, "--concurrency=1", *HASTY)
    assert code == 2
    assert "44 of 48 samples" in out


def test_a_question_whose_answers_are_of_no_use_does_not_end_a_resumed_run(
  teach,
):
  chat = ("--endpoint=chat", "--concurrency=1")
  with local_teacher.started("--script=ok" + ",reasoning" * 2) as url:
    status, out, _ = teach(url, *chat)
    assert status == 2
    assert "40 of 48 samples" in out
  with local_teacher.started("--script=reasoning") as url:
    status, out, _ = teach(url, *chat)
    assert status == 2
    assert "44 of 48 samples" in out
  with local_teacher.started("--script=reasoning") as url:
    status, out, err = teach(url, *chat)
    assert status == 2
    assert "4 of 48 samples are missing: 1 questions were given up" in err


def test_a_request_that_is_refused_for_all_prompts_ends_the_run(teach):
  with local_teacher.started("--script=" + ",".join(["400"] * 9)) as url:
    check_refused(teach(url), "5 questions in a row failed", "HTTP 400")
    assert local_teacher.stats(url)["requests"] == 5
  assert not teach.store.exists()


@pytest.mark.parametrize("status", ["405", "410", "451"])
def test_a_status_that_cannot_heal_is_paid_for_once(teach, status):
  with local_teacher.started(f"--script={status}") as url:
    check_refused(teach(url), f"HTTP {status}")
    assert local_teacher.stats(url)["requests"] == 1


@pytest.mark.parametrize("status", ["408", "409", "425", "429", "503"])
def test_a_status_that_may_heal_is_asked_again(teach, status):
  with local_teacher.started(f"--script={status}") as url:
    assert teach(url)[0] == 0
    assert local_teacher.stats(url)["requests"] == 13


@pytest.mark.parametrize(
  ("words", "hint"),
  [
    ("'n' : number must be at most 1", "--samples_per_request=1"),
    (
      "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'",
      '"max_completion_tokens": 256}',
    ),
  ],
)
def test_what_a_server_will_not_take_is_told_with_the_way_out(
  teach, words, hint
):
  script = "--script=" + ",".join(["400"] * 5)
  with local_teacher.started(script, f"--words={words}") as url:
    check_refused(teach(url), words, hint)


def test_fields_of_a_request_can_be_left_out_and_one_sample_names_no_number(
  teach,
):
  extra = '--extra_body={"max_tokens": null, "max_completion_tokens": 99}'
  with local_teacher.started() as url:
    assert teach(url, extra, "--samples_per_request=1")[0] == 0
    body = local_teacher.stats(url)["first_body"]
    assert body["max_completion_tokens"] == 99
    assert not {"max_tokens", "n"} & set(body)
    local_teacher.check_whole(teach.store, 12, 4)


def test_an_address_keeps_its_query(teach):
  with local_teacher.started() as url:
    root = url.removesuffix("/v1")
    assert teach(f"{root}/openai/deployments/d?api-version=1")[0] == 0
    path = local_teacher.stats(url)["first_path"]
    assert path == "/openai/deployments/d/completions?api-version=1"


def test_what_an_address_may_hold_in_secret_is_not_shown(teach):
  with local_teacher.started("--script=404") as url:
    status, _, err = teach(f"{url}?subscription-key=SECRET")
  assert status == 2
  assert f"{url}/completions answered HTTP 404" in err
  assert "SECRET" not in err


def test_a_server_that_returns_the_sampled_token_alone_is_told_at_once(teach):
  with local_teacher.started("--script=" + ",".join(["own_alone"] * 9)) as url:
    check_refused(teach(url), "of the 5 most probable tokens", "returns one")
    assert local_teacher.stats(url)["requests"] <= 3
    assert not teach.store.exists()
    # Wanted, it is what samples are stored with.
    assert teach(url, "--top_logprobs=1", "--concurrency=1")[0] == 0


def test_answers_with_fewer_alternatives_than_asked_are_counted(teach):
  with local_teacher.started("--script=ok,own_alone") as url:
    status, out, _ = teach(url, "--concurrency=1", "--samples_per_request=1")
  assert status == 0
  assert "; 1 samples have fewer alternatives than --top_logprobs" in out
  assert "asked again" not in out


def test_no_server_is_an_error_within_seconds(teach):
  with local_teacher.started() as url:
    pass  # its port is free again
  check_refused(teach(url), "ConnectError", url)
  assert not teach.store.exists()


def test_a_budget_of_samples_is_used_up_and_never_exceeded(teach):
  with local_teacher.started() as url:
    status, out, _ = teach(url, "--max_samples=21", "--samples_per_request=3")
    assert status == 0
    assert "21 of 48 samples" in out
    assert "stopped by a limit with 27 samples to go" in out
    assert sum(local_teacher.stats(url)["delivered"].values()) == 21
    assert teach(url, "--max_samples=48")[0] == 0
    local_teacher.check_whole(teach.store, 12, 4)


def test_a_budget_of_money_is_never_exceeded_over_all_runs(teach):
  prices = ("--prompt_price=10", "--completion_price=30", "--max_tokens=30")
  with local_teacher.started() as url:
    for limit in (0.02, 0.03):
      status, out, _ = teach(url, f"--max_cost={limit}", *prices)
      assert status == 0
      assert "stopped by a limit" in out
      cost = float(re.search(r"cost ([\d.]+)", out)[1])
      assert limit / 2 < cost <= limit


def test_a_store_that_another_process_writes_to_is_refused(teach):
  with (
    local_teacher.started() as url,
    store.RecordWriter(teach.store),
  ):
    check_refused(teach(url), "is being written by process")
    assert local_teacher.stats(url)["requests"] == 0


def test_a_store_of_a_newer_version_is_refused_and_kept(teach):
  teach.store.mkdir()
  content = '{"v": 99, "question_id": 0, "sample": 0}\n'
  (teach.store / store.FILE_NAME).write_text(content)
  with local_teacher.started() as url:
    check_refused(teach(url), "schema version 99", "upgrade")
    assert local_teacher.stats(url)["requests"] == 0
  assert (teach.store / store.FILE_NAME).read_text() == content


def test_a_full_disk_keeps_what_was_counted_and_is_gone_on_from(
  teach, questions
):
  command = [sys.executable, "-m", "specialize_jax.cli.teach"]
  with local_teacher.started() as url:
    argv = local_teacher.argv(url, questions, teach.store, "--num_samples=4")
    # The kernel refuses to let a file grow beyond this, as a full disk does.
    limit = 60_000
    done = subprocess.run(
      [*command, *argv, "--concurrency=2"],
      capture_output=True,
      text=True,
      check=False,
      preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit, limit)
      ),
    )
    assert done.returncode == 2
    (sentence,) = done.stderr.strip().splitlines()
    assert "cannot grow" in sentence
    assert "every record counted so far is kept" in sentence
    file = teach.store / store.FILE_NAME
    assert 0 < file.stat().st_size <= limit
    kept = list(store.read_records(teach.store))  # none is cut short
    assert kept
    assert teach(url)[0] == 0
    after = local_teacher.check_whole(teach.store, 12, 4)
    assert after[: len(kept)] == kept


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--temperature=0.7"], "sampled with temperature=0.5, and now"),
    (["--max_tokens=99"], "sampled with max_tokens=256, and now"),
    (["--prompt=zero_shot_chain_of_thought"], "sampled with prompt="),
  ],
)
def test_other_settings_do_not_mix_in_one_store(teach, flags, message):
  with local_teacher.started() as url:
    assert teach(url)[0] == 0
    check_refused(teach(url, *flags), message, "another --output")


@pytest.mark.parametrize(
  ("field", "message"),
  [
    ("question", "question 3 is"),
    ("answer", "the answer to question 3 is '9"),
  ],
)
def test_a_question_that_was_changed_is_not_gone_on_with(
  teach, questions, field, message
):
  rows = [json.loads(line) for line in questions.read_text().splitlines()]
  rows = [row | {"question_id": n} for n, row in enumerate(rows)]
  rows[3]["answer"] = "9"
  questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with local_teacher.started() as url:
    assert teach(url)[0] == 0
    rows[3][field] = "7"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_refused(teach(url), message, "another --output")


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--base_url=localhost:8000"], "is not an address"),
    (["--base_url=http://me:pw@host/v1"], "by the environment"),
    (["--base_url=http://me:pw@host:abc/v1"], "--base_url=http://host:abc/v1:"),
    (
      ['--extra_body={"seed": 0}', "--samples_per_request=3"],
      "seed=0, by which the requests",
    ),
    (['--extra_body={"x": {"api_key": "sk"}}'], "(--api_key_env)"),
    (["--prompt=no_such_prompt"], "--prompt=no_such_prompt is neither"),
    (["--extra_body=[1]"], "--extra_body is not a JSON object"),
    (["--extra_body={"], "--extra_body is not JSON"),
    (['--extra_body={"stream": true}'], "stream=True, and answers are read"),
    (['--extra_body={"echo": true}'], "echo=True, and a record holds no"),
    (['--extra_body={"n": 40}'], "n=40, and --samples_per_request says"),
    (['--extra_body={"x": NaN}'], "NaN is no number of JSON"),
    (["--base_url=http://localhost:99999/v1"], "99999 is no port"),
    (["--max_cost=1"], "--max_cost needs --prompt_price"),
    (["--max_cost=1", "--completion_price=3"], "needs --prompt_price and"),
    (["--api_key_env=NO_SUCH_KEY"], "names a variable that is not set"),
    (["--api_key_env=sk-abc"], "is not the name of a variable"),
    (["--questions=nowhere.jsonl"], "nowhere.jsonl"),
  ],
)
def test_a_bad_flag_is_named_before_anything_is_written(teach, flags, message):
  check_refused(teach("http://127.0.0.1:9/v1", *flags), message)
  assert not teach.store.exists()


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ("", "holds no question"),
    ('{"question": "a?"}\n', "answer"),
    ('{"question": "a?", "answer": "none"}\n', "has no number"),
    ('{"question": "a?", "answer": "1"', "line 1"),
    (
      '{"question": "a?", "answer": "1", "question_id": 3}\n' * 2,
      "two questions have the id 3",
    ),
    (f'{{"question": "a?", "answer": 1{"0" * 400}}}\n', "has no number"),
    ('{"question": null, "answer": "1"}\n', "'question' is null"),
    ('{"question": ["a"], "answer": "1"}\n', "expected a string"),
    ('{"question": " ", "answer": "1"}\n', "'question' is empty"),
    ('{"question": "\\ud800?", "answer": "1"}\n', "surrogate pair"),
    (
      '{"question": "a?", "answer": "1", "question_id": true}\n',
      "question_id is True",
    ),
    (
      '{"question": "a?", "answer": "1", "question_id": 3}\n'
      '{"question": "b?", "answer": "1", "question_id": "3"}\n',
      "two questions have the id '3'",
    ),
    (
      f'{{"question": "a?", "answer": "1", "question_id": {10**25}}}\n',
      "whole number of 64 bits",
    ),
  ],
)
def test_bad_questions_are_named(teach, questions, rows, message):
  questions.write_text(rows)
  check_refused(teach("http://127.0.0.1:9/v1"), message)
  assert not teach.store.exists()


@pytest.mark.parametrize(
  ("name", "value"),
  [("ALL_PROXY", "socks://localhost:1"), ("SSL_CERT_FILE", "/no/such/file")],
)
def test_an_environment_that_httpx_refuses_is_one_sentence(
  teach, monkeypatch, name, value
):
  monkeypatch.setenv(name, value)
  check_refused(teach("http://127.0.0.1:9/v1"), "cannot be used", name)
  assert not teach.store.exists()


def test_a_key_that_no_header_can_carry_is_refused_unseen(teach, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "sk-sec\nret")
  result = teach("http://127.0.0.1:9/v1")
  check_refused(result, "the key in the environment")
  assert "sec" not in result[2]


def test_an_output_that_is_a_file_is_refused(teach):
  teach.store.write_text("mine")
  check_refused(
    teach("http://127.0.0.1:9/v1"), "is a file: expected a directory"
  )
  assert pathlib.Path(teach.store).read_text() == "mine"
