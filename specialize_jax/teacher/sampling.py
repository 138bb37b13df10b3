"""Draws every missing sample, and counts it when it is on disk.

Workers take questions in order, ask for what each lacks, grade what arrives
and hand it to the committer, which writes and synchronises in groups: while
one group goes to disk the next collects, so that the disk's latency bounds
neither. Nothing else is remembered: after any end the store itself tells what
is missing (`standing.read`).
"""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.records import schema, store
from specialize_jax.teacher import (
  client,
  limits,
  prompts,
  responses,
  standing,
)

# So many questions given up one after another, none answered between them,
# say that the endpoint is down.
_MAX_GIVEN_UP_IN_A_ROW = 5
_BYTES_A_TOKEN = 3.0  # of a prompt, until the server says how many it counts


@dataclasses.dataclass(kw_only=True)
class Outcome:
  """How a run ended.

  Attributes:
    finished: Whether every sample is in the store.
    given_up: The last reason of each question that could not be finished.
  """

  finished: bool
  given_up: list[str]


class Committer:
  """Appends records to a store and tells when they are on disk."""

  def __init__(self, writer: store.RecordWriter) -> None:
    """Commits to `writer`, which nobody else may use meanwhile."""
    self._writer = writer
    self._waiting: list[asyncio.Future[None]] = []
    self._flushing: asyncio.Task[None] | None = None

  async def commit(self, records: Sequence[schema.TeacherRecord]) -> None:
    """Returns once the records are durable.

    Raises:
      UserError: the disk is full.
    """
    for record in records:
      self._writer.append(record)
    done = asyncio.get_running_loop().create_future()
    self._waiting.append(done)
    if self._flushing is None:
      self._flushing = asyncio.create_task(self._flush())
    await done

  async def _flush(self) -> None:
    """Flushes group after group until nobody waits."""
    while self._waiting:
      group, self._waiting = self._waiting, []
      failure = None
      try:
        await asyncio.to_thread(self._writer.flush)
      except (OSError, errors.UserError) as error:
        failure = error
      for done in group:
        if done.done():  # its worker was cancelled
          continue
        if failure is None:
          done.set_result(None)
        else:
          done.set_exception(failure)
    self._flushing = None


class Sampler:
  """Runs the workers of one command."""

  def __init__(
    self,
    teacher: client.Client,
    prompt: prompts.Prompt,
    committer: Committer,
    *,
    limits_of_store: limits.Limits,
    samples_per_request: int,
    rule: answer_rules.AnswerRule = answer_rules.NUMBER,
    progress: Callable[[standing.Standing], None],
  ) -> None:
    """Asks `teacher`; nothing is sent before `run`.

    Args:
      teacher: An open client.
      prompt: How a question is put.
      committer: Takes the records.
      limits_of_store: How much the store may cost, in all runs together.
      samples_per_request: The most choices that one request asks for.
      rule: What an answer is.
      progress: Is called after each group of samples that became durable.
    """
    self._teacher = teacher
    self._prompt = prompt
    self._committer = committer
    self._limits = limits_of_store
    self._samples_per_request = samples_per_request
    self._progress = progress
    self._rule = rule
    self._settings = settings(teacher.sampling, prompt)
    self._bytes_a_token = _BYTES_A_TOKEN
    self._given_up: list[str] = []
    self._given_up_in_a_row = 0
    self._exhausted = False
    self._failure: BaseException | None = None

  async def run(self, now: standing.Standing, concurrency: int) -> Outcome:
    """Draws what is missing.

    The first question is asked alone: an endpoint that cannot serve is found
    out by one request.

    Args:
      now: How far the store is; kept up to date.
      concurrency: How many workers.

    Raises:
      UserError: the endpoint, the key or the disk cannot serve.
    """
    self._budget = limits.Budget(self._limits, now.spent)
    todo = iter(now.missing)
    await self._work(now, todo, at_most=1)
    self._raise_failure()
    if self._given_up and not self._exhausted:
      raise errors.UserError(f"the first question failed: {self._given_up[0]}")
    async with asyncio.TaskGroup() as workers:
      for _ in range(min(concurrency, len(now.missing))):
        workers.create_task(self._work(now, todo))
    self._raise_failure()
    return Outcome(finished=now.done == now.total, given_up=self._given_up)

  def _raise_failure(self) -> None:
    if self._failure is not None:
      raise self._failure

  async def _work(
    self,
    now: standing.Standing,
    todo: Iterator[tuple[standing.Problem, list[int]]],
    at_most: int | None = None,
  ) -> None:
    """Takes questions until there are none, the budget is spent or one fails.

    A failure ends the others too, after the requests that they have under
    way: what was answered is paid for.
    """
    for count, (problem, numbers) in enumerate(todo, start=1):
      try:
        await self._finish(now, problem, numbers)
        self._given_up_in_a_row = 0
      except client.GivenUpError as error:
        self._given_up.append(str(error))
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= _MAX_GIVEN_UP_IN_A_ROW:
          self._fail(
            errors.UserError(
              f"{self._given_up_in_a_row} questions in a row failed, the last"
              f" with: {error}; what was finished is stored, and the same"
              " command goes on from there"
            )
          )
      except (OSError, errors.UserError) as error:
        self._fail(error)
      if self._failure is not None or self._exhausted or count == at_most:
        return

  def _fail(self, error: BaseException) -> None:
    self._failure = self._failure or error
    self._teacher.stop()

  async def _finish(
    self, now: standing.Standing, problem: standing.Problem, numbers: list[int]
  ) -> None:
    """Asks for samples of a question until it has all."""
    text = self._prompt.render(problem.question)
    size = len(text.encode())
    missing = list(numbers)
    while missing and self._failure is None:
      reserved = await self._budget.reserve(
        min(len(missing), self._samples_per_request),
        prompt_tokens=round(size / self._bytes_a_token),
        max_tokens=self._teacher.sampling.max_tokens,
      )
      if reserved is None:
        self._exhausted = True
        return
      used = limits.Usage()
      try:
        response = await self._teacher.ask(
          text, reserved.samples, expected_tokens=reserved.tokens
        )
        used = self._usage(response, reserved)
        if response.prompt_tokens:
          self._bytes_a_token = size / response.prompt_tokens
        records = self._records(problem, missing, response, used)
        await self._committer.commit(records)
      finally:
        await self._budget.settle(reserved, used)
      missing = missing[len(records) :]
      now.done += len(records)
      now.right += sum(record.verdicts["fixed"] for record in records)
      now.unfinished += sum(map(_is_unfinished, records))
      now.spent = self._budget.spent
      self._progress(now)

  def _usage(
    self, response: responses.Response, reserved: limits.Usage
  ) -> limits.Usage:
    """Returns what an answer used: what the server counted, else our count."""
    counted = sum(map(_num_tokens, response.choices))
    prompt_tokens = response.prompt_tokens
    completion_tokens = response.completion_tokens
    return limits.Usage(
      samples=len(response.choices),
      prompt_tokens=(
        reserved.prompt_tokens if prompt_tokens is None else prompt_tokens
      ),
      completion_tokens=(
        counted if completion_tokens is None else completion_tokens
      ),
    )

  def _records(
    self,
    problem: standing.Problem,
    numbers: Sequence[int],
    response: responses.Response,
    used: limits.Usage,
  ) -> list[schema.TeacherRecord]:
    """Returns an answer as graded records."""
    return [
      schema.TeacherRecord(
        question_id=problem.question_id,
        sample=number,
        question=problem.question,
        gold_answer=problem.answer,
        text=choice.text,
        steps=choice.steps,
        finish_reason=choice.finish_reason,
        request={**self._settings, standing.USAGE: usage},
        verdicts=standing.grade(choice.text, problem.answer, self._rule),
      )
      for number, choice, usage in zip(
        numbers, response.choices, _shares(response, used), strict=False
      )
    ]


def settings(
  sampling: client.Sampling, prompt: prompts.Prompt
) -> dict[str, object]:
  """Gives what each record keeps of how it was asked for."""
  return {**sampling.description(), "prompt": prompt.fingerprint}


def _shares(
  response: responses.Response, used: limits.Usage
) -> list[Mapping[str, int]]:
  """Divides what an answer used among its samples; the sums are what it used.

  A sample has its own tokens, those of its reasoning among them, which are
  named apart; the first also has the prompt's, which were counted once, and
  what the server counted beyond the tokens that are kept, such as those of a
  stop or of a choice that could not be used.
  """
  shares = [
    {"prompt_tokens": 0, "completion_tokens": _num_tokens(choice)}
    for choice in response.choices
  ]
  kept = sum(share["completion_tokens"] for share in shares)
  shares[0]["prompt_tokens"] = used.prompt_tokens
  shares[0]["completion_tokens"] += used.completion_tokens - kept
  for share, choice in zip(shares, response.choices, strict=True):
    if choice.reasoning_tokens:
      share["reasoning_tokens"] = choice.reasoning_tokens
  return shares


def _is_unfinished(record: schema.TeacherRecord) -> bool:
  return schema.why_unfinished(record, len(record.steps)) is not None


def _num_tokens(choice: responses.Choice) -> int:
  return choice.reasoning_tokens + len(choice.steps)
