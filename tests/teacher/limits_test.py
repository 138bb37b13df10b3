"""Limits hold, and a budget is never exceeded and never deadlocks."""

import asyncio
import datetime
import email.utils
import random
import time

import pytest

from specialize_jax.teacher import limits


def test_so_many_pass_in_so_much_time():
  async def pass_all(per_minute, units):
    rate = limits.RateLimit(per_minute)
    start = time.monotonic()
    passed = []

    async def one(size):
      await rate.acquire(size)
      passed.append(time.monotonic() - start)

    await asyncio.gather(*[one(size) for size in units])
    return passed

  passed = asyncio.run(pass_all(1200, [1] * 6))  # one each 50 ms
  for number, seconds in enumerate(passed):
    assert seconds >= 0.05 * number - 0.005
  passed = asyncio.run(pass_all(60_000, [100, 200, 1]))  # one each ms
  assert passed[1] >= 0.095
  assert passed[2] >= 0.295
  assert max(asyncio.run(pass_all(None, [1] * 100))) < 5


def test_what_was_used_corrects_what_was_said():
  async def run():
    rate = limits.RateLimit(60_000)
    start = time.monotonic()
    await rate.acquire(10_000)
    rate.correct(-9_900)
    await rate.acquire(1)
    return time.monotonic() - start

  assert 0.095 <= asyncio.run(run()) < 5


def test_costs_are_told_by_the_price_of_a_million():
  price = limits.Limits(prompt_price=2.0, completion_price=8.0)
  usage = limits.Usage(prompt_tokens=500_000, completion_tokens=250_000)
  assert price.cost_of(usage) == pytest.approx(3.0)


@pytest.mark.parametrize(
  "allowed",
  [
    limits.Limits(samples=37),
    limits.Limits(tokens=2_000),
    limits.Limits(cost=0.01, prompt_price=2, completion_price=9),
  ],
)
def test_a_budget_is_used_up_and_never_exceeded(allowed):
  rng = random.Random(0)
  budget = limits.Budget(allowed, limits.Usage(samples=1))
  longest = 40

  async def work():
    while True:
      asked = await budget.reserve(4, prompt_tokens=30, max_tokens=longest)
      if asked is None:
        return
      await asyncio.sleep(rng.random() * 0.001)
      got = rng.randint(0, asked.samples)  # fewer than asked, or a failure
      used = limits.Usage(
        samples=got,
        prompt_tokens=30 if got else 0,
        completion_tokens=sum(rng.randint(1, longest) for _ in range(got)),
      )
      await budget.settle(asked, used)
      assert allowed.allows(budget.spent)

  async def run():
    async with asyncio.timeout(60):
      await asyncio.gather(*[work() for _ in range(8)])

  asyncio.run(run())
  one_more = limits.Usage(
    samples=1, prompt_tokens=30, completion_tokens=longest
  )
  assert not allowed.allows(budget.spent + one_more)


@pytest.mark.parametrize(
  ("value", "seconds"),
  [
    (None, 0.0),
    ("7", 7.0),
    ("1.5", 1.5),
    ("-3", 0.0),
    ("nan", 0.0),
    ("inf", 0.0),
    ("soon", 0.0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ("Wed, 21 Oct 2015 07:28:00 -0000", 0.0),
    ("Wed, 99 Oct 2015 07:28:00 GMT", 0.0),
  ],
)
def test_what_a_server_asks_to_wait_is_never_less_than_nothing(value, seconds):
  assert limits.retry_after_seconds(value) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_a_server_may_say_when_instead_of_how_long(zone):
  then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
  date = email.utils.format_datetime(then).replace("+0000", zone)
  assert 3500 < limits.retry_after_seconds(date) <= 3600
