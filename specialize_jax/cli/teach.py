"""`specialize teach`: samples an endpoint into a record store."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import re
import sys
import typing
from collections.abc import Iterator, Sequence

from specialize_jax import errors
from specialize_jax.cli import flag_types, logs, parsers, registered_tasks
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.datasets import files
  from specialize_jax.records import store
  from specialize_jax.teacher import client, limits, prompts, standing

_EXAMPLE = """example (GSM8K's training questions, as the paper asks them):
  specialize teach --benchmark=gsm8k --split=train --data_dir=data \\
    --base_url=http://localhost:8000/v1 --model=MODEL --output=records

The key, where the endpoint wants one, is read from the environment variable
OPENAI_API_KEY. A domain of your own, whose answers need not be numbers, is
described in a file (docs/own_domain.md): --dataset=tickets.yaml instead of
--benchmark and --prompt. The command can be interrupted at any moment: started
again, it requests only samples that are not in the store.
"""

_FORBIDDEN = {
  "stream": "answers are read whole",
  "echo": "a record holds no prompt",
  "return_tokens_as_token_ids": "a student knows no ids of the teacher's",
  "n": "--samples_per_request says how many samples a request asks for",
  "best_of": "the samples that are not returned would be paid for, too",
  "prompt": "--prompt says how a question is asked",
  "messages": "--prompt says how a question is asked",
}
"""Fields of a request whose answers give no record, and why."""

_PROMPT = dataclasses.replace(
  paths.INPUT_FILE,
  or_name=True,
  expected="the name of a packaged prompt, or a text file with {question} in"
  " it",
)
_DEFAULT_STOP = {"completions": ("\n\n",), "chat": ()}


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize teach",
    description="Samples solutions with the top log-probabilities of every"
    " token from an OpenAI-compatible endpoint into a record store, graded on"
    " arrival.",
    epilog=_EXAMPLE,
  )
  _add_question_flags(parser.add_argument_group("questions"))
  _add_sampling_flags(parser.add_argument_group("sampling"))
  _add_connection_flags(parser.add_argument_group("the endpoint"))
  _add_limit_flags(
    parser.add_argument_group(
      "limits of the store, over all runs",
      "A run that reaches one stops with status 0; none is exceeded, since a"
      " request is sent only if its longest possible response is within them.",
    )
  )
  logs.add_flags(parser)
  return parser


def _add_question_flags(group: argparse._ArgumentGroup) -> None:
  source = group.add_mutually_exclusive_group()
  source.add_argument(
    "--questions",
    metavar="FILE.jsonl",
    help='rows of {"question", "answer"}, "question_id" where they have one',
  )
  source.add_argument(
    "--benchmark",
    metavar="NAME",
    help="gsm8k, multiarith, asdiv or svamp, as its authors publish it",
  )
  registered_tasks.add_dataset_flag(group)
  group.add_argument(
    "--split", default="train", help="the benchmark's split (default: train)"
  )
  group.add_argument(
    "--data_dir", metavar="DIR", help="the directory of the benchmarks' files"
  )
  group.add_argument(
    "--num_questions",
    type=flag_types.whole(1),
    metavar="N",
    help="only the first N, for a trial (default: all)",
  )
  group.add_argument(
    "--output",
    required=True,
    metavar="DIR",
    help="the record store, which is created or resumed",
  )


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
  group.add_argument(
    "--num_samples",
    type=flag_types.whole(1),
    default=40,
    metavar="N",
    help="samples per question (default: 40, as in the paper)",
  )
  group.add_argument(
    "--prompt",
    metavar="NAME|FILE",
    help="few_shot_chain_of_thought, zero_shot_chain_of_thought, or"
    " a text file with {question} in it once (default: teacher.prompt of"
    " --dataset, else few_shot_chain_of_thought, which is GSM8K's)",
  )
  group.add_argument(
    "--temperature", type=flag_types.real(at_least=0), default=0.5
  )
  group.add_argument(
    "--max_tokens",
    type=flag_types.whole(1),
    default=256,
    help="tokens per sample",
  )
  group.add_argument(
    "--stop",
    action="append",
    metavar="TEXT",
    help="a text that ends a sample; may be repeated; \\n is a line break"
    " (default: a blank line for completions, nothing for chat)",
  )
  group.add_argument(
    "--top_logprobs",
    type=flag_types.whole(1),
    default=5,
    metavar="N",
    help="alternatives per token (default: 5)",
  )
  group.add_argument(
    "--samples_per_request",
    type=flag_types.whole(1),
    default=10,
    metavar="N",
    help="the largest `n` of a request (default: 10); 1 for servers without it",
  )
  group.add_argument(
    "--extra_body",
    metavar="JSON",
    help="more fields of the request, such as '{\"top_p\": 0.95}'; null"
    " leaves one out; llama.cpp's"
    " Python server samples from the model's own distribution only with"
    ' \'{"repeat_penalty": 1, "top_k": 0, "top_p": 1, "min_p": 0}\'',
  )


def _add_connection_flags(group: argparse._ArgumentGroup) -> None:
  group.add_argument("--base_url", required=True, metavar="URL")
  group.add_argument("--model", required=True)
  group.add_argument(
    "--endpoint",
    default="completions",
    choices=("completions", "chat"),
    help="/completions (default) or /chat/completions",
  )
  group.add_argument(
    "--api_key_env",
    default="OPENAI_API_KEY",
    metavar="VARIABLE",
    help="the environment variable that holds the key, if it is set",
  )
  whole, real = flag_types.whole(1), flag_types.real(above=0)
  for name, kind, default, what in (
    ("concurrency", whole, 32, "number of concurrent requests"),
    ("timeout_seconds", real, 120.0, "timeout of a request"),
    (
      "max_attempts",
      whole,
      10,
      "maximum number of attempts of a request; at most 5 of them may return an"
      " unusable answer, which costs money too",
    ),
    ("max_wait_seconds", real, 300.0, "maximum pause between attempts"),
    ("requests_per_minute", real, None, "a limit"),
    ("tokens_per_minute", real, None, "a limit"),
  ):
    shown = "none" if default is None else f"{default:g}"
    group.add_argument(
      f"--{name}",
      type=kind,
      default=default,
      metavar="N",
      help=f"{what} (default: {shown})",
    )


def _add_limit_flags(group: argparse._ArgumentGroup) -> None:
  for name, what in (
    ("max_samples", "samples"),
    ("max_total_tokens", "tokens of prompts and samples"),
    ("max_cost", "money, by the two prices"),
  ):
    group.add_argument(
      f"--{name}",
      type=flag_types.real(above=0),
      default=math.inf,
      help=what,
    )
  for name in ("prompt_price", "completion_price"):
    group.add_argument(
      f"--{name}",
      type=flag_types.real(at_least=0),
      default=0.0,
      help="a million tokens",
    )


def main(argv: Sequence[str] | None = None) -> int:
  """Samples until the store is complete or a limit is reached."""
  flags = build_parser().parse_args(argv)
  logs.start(flags)
  paths.check_flags(
    flags,
    {
      "questions": paths.INPUT_FILE,
      "dataset": registered_tasks.DATASET_FILE,
      "data_dir": registered_tasks.DATA_DIRECTORY,
      "prompt": _PROMPT,
      "output": paths.LOCAL_STORE,
    },
  )
  parsers.check_only_with(
    flags,
    ("split", "data_dir"),
    flags.benchmark is not None,
    "--benchmark",
  )
  limits_of_store = _limits(flags)

  from specialize_jax.cli import sampling_progress
  from specialize_jax.cot import answer_rules
  from specialize_jax.files import writing
  from specialize_jax.records import store
  from specialize_jax.teacher import client, sampling, standing

  own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  problems = _problems(flags, own)
  prompt = _prompt(flags, own)
  rule = own.dataset.in_distribution.answer if own else answer_rules.NUMBER
  connection = _connection(flags)
  asked = _sampling(flags)
  teacher = client.Client(connection, asked)
  with _opened_store(flags.output) as writer:
    now = standing.read(
      store.read_heads(flags.output),
      problems,
      num_samples=flags.num_samples,
      settings=sampling.settings(asked, prompt),
    )
    writing.write_text(
      pathlib.Path(flags.output) / f"prompt-{prompt.fingerprint}.txt",
      prompt.template,
    )
    with sampling_progress.Progress(now, limits_of_store) as progress:

      async def run() -> sampling.Outcome:
        async with teacher:
          sampler = sampling.Sampler(
            teacher,
            prompt,
            sampling.Committer(writer),
            limits_of_store=limits_of_store,
            samples_per_request=flags.samples_per_request,
            rule=rule,
            progress=progress.update,
          )
          return await sampler.run(now, flags.concurrency)

      outcome = asyncio.run(run())
  print(f"{flags.output}: {_summary(now, limits_of_store, teacher)}")
  if outcome.given_up:
    raise errors.UserError(
      f"{now.total - now.done:,} of {now.total:,} samples are missing:"
      f" {len(outcome.given_up):,} questions were given up (after at most"
      f" --max_attempts={flags.max_attempts} attempts), the last with:"
      f" {outcome.given_up[-1]}; run the same command again to ask for them"
    )
  if not outcome.finished:
    print(f"stopped by a limit with {now.total - now.done:,} samples to go")
  return 0


def _prompt(
  flags: argparse.Namespace, own: files.DatasetFile | None
) -> prompts.Prompt:
  """Returns the prompt template of the flags or the dataset."""
  from specialize_jax.teacher import prompts

  if flags.prompt is not None:
    return prompts.load(flags.prompt)
  if own is None:
    return prompts.load("few_shot_chain_of_thought")
  if own.dataset.teacher_prompt is None:
    raise errors.UserError(
      f"--dataset={flags.dataset} does not say how the teacher is asked: add"
      " `teacher: {prompt: ...}` with {question} in it, or give --prompt"
    )
  return prompts.Prompt(template=own.dataset.teacher_prompt)


def _problems(
  flags: argparse.Namespace, own: files.DatasetFile | None
) -> list[standing.Problem]:
  from specialize_jax.cli import asked_questions

  given = [flags.questions, flags.benchmark, own]
  if sum(one is not None for one in given) != 1:
    raise errors.UserError(
      "give exactly one of --dataset=FILE.yaml, --questions=FILE.jsonl and"
      " --benchmark=NAME: it has the questions"
    )
  if own is not None:
    problems = asked_questions.of_dataset(own)
  elif flags.questions is not None:
    problems = asked_questions.read_file(flags.questions)
  else:
    from specialize_jax.data import sources

    if flags.data_dir is not None:
      sources.set_data_dir(flags.data_dir)
    problems = asked_questions.read_benchmark(flags.benchmark, flags.split)
  return problems[: flags.num_questions]


def _sampling(flags: argparse.Namespace) -> client.Sampling:
  from specialize_jax.teacher import client

  stop = _DEFAULT_STOP[flags.endpoint]
  if flags.stop is not None:
    stop = tuple(text.replace("\\n", "\n") for text in flags.stop if text)
  extra = _extra_body(flags.extra_body)
  if extra.get("seed") is not None and (
    flags.num_samples > flags.samples_per_request
  ):
    raise errors.UserError(
      f"--extra_body has seed={extra['seed']}, by which the requests of a"
      " question would all be answered by the same samples: leave it out, or"
      f" give --samples_per_request={flags.num_samples}"
    )
  return client.Sampling(
    model=flags.model,
    endpoint=flags.endpoint,
    temperature=flags.temperature,
    max_tokens=flags.max_tokens,
    stop=stop,
    top_logprobs=flags.top_logprobs,
    extra=extra,
  )


def _no_constant(name: str) -> None:
  raise ValueError(f"{name} is no number of JSON")


def _extra_body(text: str | None) -> dict[str, object]:
  if text is None:
    return {}
  from specialize_jax.teacher import credentials

  try:
    extra = json.loads(text, parse_constant=_no_constant)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f"--extra_body is not JSON: {error}") from error
  if not isinstance(extra, dict):
    raise errors.UserError("--extra_body is not a JSON object")
  for name, why in _FORBIDDEN.items():
    if extra.get(name):
      raise errors.UserError(
        f"--extra_body has {name}={extra[name]!r}, and {why}; leave it out"
      )
  try:
    secret = credentials.first_name(extra)
  except RecursionError as error:
    raise errors.UserError("--extra_body is nested too deeply") from error
  if secret is not None:
    raise errors.UserError(
      f"--extra_body has {secret!r}, which would be stored with every record:"
      " give a key by the environment (--api_key_env)"
    )
  return extra


def _connection(flags: argparse.Namespace) -> client.Connection:
  from specialize_jax.teacher import client

  if "api_key_env" in flags.given and flags.api_key_env not in os.environ:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", flags.api_key_env):
      raise errors.UserError(
        "--api_key_env is not the name of a variable: set one to the key, and"
        " give its name, such as OPENAI_API_KEY"
      )
    raise errors.UserError(
      f"--api_key_env={flags.api_key_env} names a variable that is not set"
    )
  return client.Connection(
    base_url=flags.base_url,
    key=os.environ.get(flags.api_key_env, ""),
    concurrency=flags.concurrency,
    timeout_seconds=flags.timeout_seconds,
    max_attempts=flags.max_attempts,
    max_wait_seconds=flags.max_wait_seconds,
    requests_per_minute=flags.requests_per_minute,
    tokens_per_minute=flags.tokens_per_minute,
  )


def _limits(flags: argparse.Namespace) -> limits.Limits:
  from specialize_jax.teacher import limits

  prices = {"prompt_price", "completion_price"}
  if flags.max_cost < math.inf and not prices <= flags.given:
    raise errors.UserError(
      "--max_cost needs --prompt_price and --completion_price, in money a"
      " million tokens; give 0 for what costs nothing"
    )
  return limits.Limits(
    samples=flags.max_samples,
    tokens=flags.max_total_tokens,
    cost=flags.max_cost,
    prompt_price=flags.prompt_price,
    completion_price=flags.completion_price,
  )


@contextlib.contextmanager
def _opened_store(directory: str) -> Iterator[store.RecordWriter]:
  """Locks a store; removes a new one that stays empty."""
  from specialize_jax.records import store

  place = pathlib.Path(directory)
  is_new = not place.exists()
  with store.RecordWriter(place) as writer:
    try:
      yield writer
    finally:
      # While it is locked: afterwards it may be another command's.
      if is_new and writer.is_empty:
        for file in (place / store.FILE_NAME, *place.glob("prompt-*.txt")):
          file.unlink(missing_ok=True)
  if is_new and writer.is_empty:
    _remove_empty(place)


def _remove_empty(place: pathlib.Path) -> None:
  """Removes a directory, unless another command has put files there."""
  try:
    place.rmdir()
  except OSError as error:
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
      raise


def _summary(
  now: standing.Standing, price: limits.Limits, teacher: client.Client
) -> str:
  words = [
    f"{now.done:,} of {now.total:,} samples",
    f"{now.right / max(1, now.done):.1%} right",
    f"{now.spent.tokens:,} tokens",
  ]
  if price.prompt_price or price.completion_price:
    words.append(f"cost {price.cost_of(now.spent):,.2f}")
  if now.unfinished:
    words.append(
      f"{now.unfinished:,} not finished, which prepare drops (most often"
      " --max_tokens is too small)"
    )
  if teacher.reasoning_tokens:
    words.append(f"reasoning of {teacher.reasoning_tokens:,} tokens cut off")
  if teacher.few_alternatives:
    words.append(
      f"{teacher.few_alternatives:,} samples have fewer alternatives than"
      " --top_logprobs asks for"
    )
  if teacher.left_out:
    counts = (f"{n:,} {why}" for why, n in teacher.left_out.most_common())
    words.append(f"alternatives left out: {', '.join(counts)}")
  if teacher.faults:
    faults = (f"{kind} {n:,}" for kind, n in teacher.faults.most_common())
    words.append(f"asked again after: {', '.join(faults)}")
  return "; ".join(words)


if __name__ == "__main__":
  from specialize_jax.cli import main as command_line

  sys.exit(command_line.run("teach", sys.argv[1:]))
