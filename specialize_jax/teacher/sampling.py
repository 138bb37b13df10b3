"""Samples everything that a record store lacks.

Workers process questions in order: they request the missing samples, grade the
responses, and pass them to the committer, which writes and syncs them in
groups. The next group is collected while the previous one is written, so that
the disk's latency does not limit throughput. There is no other state: after an
interruption, the missing samples are determined from the store
(`standing.read`).
"""

import asyncio
import collections
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

# After this many consecutive failed questions the endpoint is considered down.
_MAX_GIVEN_UP_IN_A_ROW = 5
# Likewise, of those that were refused for their own prompts, as by a filter of
# contents, once another was answered: a resumed run begins with these.
_MAX_REFUSED_IN_A_ROW = 100
_BYTES_A_TOKEN = 3.0  # of a prompt, until the server returns a token count


@dataclasses.dataclass(kw_only=True)
class Outcome:
  """The result of a run.

  Attributes:
    finished: Whether every sample is in the store.
    given_up: The last error of each question that could not be completed.
  """

  finished: bool
  given_up: list[str]


class Committer:
  """Appends records to a store in groups, and waits until they are on disk."""

  def __init__(self, writer: store.RecordWriter) -> None:
    """Creates a committer, which must be the only user of `writer`."""
    self._writer = writer
    self._waiting: list[asyncio.Future[None]] = []
    self._flushing: asyncio.Task[None] | None = None

  async def commit(self, records: Sequence[schema.TeacherRecord]) -> None:
    """Appends records, and returns when they are on disk.

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
    """Writes groups of records until no worker is waiting."""
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


class _Todo(Iterator[tuple[standing.Problem, list[int]]]):
  """The questions with missing samples, each taken once.

  Attributes:
    in_order: Whether the first is taken next; otherwise the first and the last
      in turn.
  """

  def __init__(
    self, missing: Sequence[tuple[standing.Problem, list[int]]]
  ) -> None:
    self.in_order = False
    self._left = collections.deque(missing)
    self._takes_last = False

  def __next__(self) -> tuple[standing.Problem, list[int]]:
    if not self._left:
      raise StopIteration
    takes_last = self._takes_last and not self.in_order
    self._takes_last = not self._takes_last
    return self._left.pop() if takes_last else self._left.popleft()


class Sampler:
  """Runs the workers that request samples."""

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
    """Creates a sampler; nothing is sent before `run`.

    Args:
      teacher: An open client.
      prompt: The prompt template.
      committer: The committer of the store.
      limits_of_store: Limits on the store's total usage, over all runs.
      samples_per_request: The maximum number of samples of a request.
      rule: The rule by which answers are extracted and compared.
      progress: Called after each group of samples is on disk.
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
    self._has_answers = False
    self._may_be_prompts = False
    self._exhausted = False
    self._failure: BaseException | None = None

  async def run(self, now: standing.Standing, concurrency: int) -> Outcome:
    """Requests all missing samples.

    Until a question is answered there are no concurrent requests, so that a
    single request detects a misconfigured endpoint. A question that may have
    failed for its own prompt is followed by another, and so is any if the store
    has samples: they are taken from either end in turn, since those that an
    earlier run gave up are the first.

    Args:
      now: The state of the store; updated.
      concurrency: The number of workers.

    Raises:
      UserError: the endpoint, the key or the disk cannot be used.
    """
    self._budget = limits.Budget(self._limits, now.spent)
    self._teacher.on_unusable = self._budget.charge
    self._teacher.has_answered_before = now.done > 0
    todo = _Todo(now.missing)
    for number in range(1, len(now.missing) + 1):
      await self._work(now, todo, at_most=1)
      self._raise_failure()
      if len(self._given_up) < number or self._exhausted:
        break
      may_go_on = self._may_be_prompts and number < len(now.missing)
      if not may_go_on and not self._teacher.has_answered_before:
        raise errors.UserError(
          f"the first question failed: {self._given_up[0]}"
        )
    todo.in_order = True
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
    todo: _Todo,
    at_most: int | None = None,
  ) -> None:
    """Processes questions until none is left, the budget is spent or one fails.

    After a failure the other workers stop as well, but only when their pending
    requests, which are paid for, are completed.
    """
    for count, (problem, numbers) in enumerate(todo, start=1):
      try:
        await self._finish(now, problem, numbers)
        self._given_up_in_a_row = 0
        self._has_answers = True
      except client.GivenUpError as error:
        self._given_up.append(str(error))
        self._may_be_prompts = error.may_be_prompts
        self._given_up_in_a_row += 1
        is_refused = error.is_refused and self._has_answers
        if self._given_up_in_a_row >= (
          _MAX_REFUSED_IN_A_ROW if is_refused else _MAX_GIVEN_UP_IN_A_ROW
        ):
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
    """Requests samples of a question until none is missing."""
    text = self._prompt.render(problem.question)
    size = len(text.encode())
    missing = list(numbers)
    while missing and self._failure is None:
      reserved = await self._budget.reserve(
        min(len(missing), self._samples_per_request),
        prompt_tokens=round(size / self._bytes_a_token),
        max_tokens=self._teacher.sampling.longest_sample,
      )
      if reserved is None:
        self._exhausted = True
        return
      if self._failure is not None:  # while this question waited
        await self._budget.settle(reserved, limits.Usage())
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
    """Returns a response's usage, as counted by the server, or else by us."""
    counted = sum(map(_num_tokens, response.choices))
    prompt_tokens = response.prompt_tokens
    completion_tokens = response.completion_tokens
    return limits.Usage(
      samples=len(response.choices),
      prompt_tokens=(
        reserved.prompt_tokens if prompt_tokens is None else prompt_tokens
      ),
      completion_tokens=(
        # Some servers count one choice of several.
        counted
        if completion_tokens is None
        else max(counted, completion_tokens)
      ),
    )

  def _records(
    self,
    problem: standing.Problem,
    numbers: Sequence[int],
    response: responses.Response,
    used: limits.Usage,
  ) -> list[schema.TeacherRecord]:
    """Converts a response to graded records."""
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
  """Returns the parameters of a request that are stored with each record."""
  return {**sampling.description(), "prompt": prompt.fingerprint}


def _shares(
  response: responses.Response, used: limits.Usage
) -> list[Mapping[str, int]]:
  """Divides a response's usage among its samples.

  The share of a sample are its own tokens, including those of its reasoning,
  which are also listed separately. The share of the first sample includes the
  prompt's tokens and any others that the server counted, such as those of a
  stop sequence or of a rejected choice. The shares add up to the usage.
  """
  shares = [
    {"prompt_tokens": 0, "completion_tokens": _num_tokens(choice)}
    for choice in response.choices
  ]
  kept = sum(share["completion_tokens"] for share in shares)
  shares[0]["prompt_tokens"] = used.prompt_tokens
  shares[0]["completion_tokens"] += used.completion_tokens - kept
  for share, choice in zip(shares, response.choices, strict=True):
    share.update(choice.removed_tokens)
  return shares


def _is_unfinished(record: schema.TeacherRecord) -> bool:
  return schema.why_unfinished(record, len(record.steps)) is not None


def _num_tokens(choice: responses.Choice) -> int:
  return choice.reasoning_tokens + len(choice.steps)
