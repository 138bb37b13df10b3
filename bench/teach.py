"""Measures the sampling rate of `specialize teach` against its server's.

Two processes on two cores: a local server that answers at once, without
faults, with texts of a hundred tokens and five alternatives each; and, on one
core, either the client of `specialize teach`, which parses, checks, grades and
stores each sample durably, or a bare httpx loop that asks for the same and
looks at nothing. `per_cpu_second` counts the client's own seconds on its core,
which a busy machine does not change. Prints JSON; from the repository's root:

  python bench/teach.py --output=bench_teach.json
"""

import argparse
import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import httpx

from specialize_jax.files import writing
from specialize_jax.records import store
from specialize_jax.teacher import client, limits, prompts, sampling, standing

_SERVER = (
  pathlib.Path(__file__).parents[1] / "tests" / "testdata" / "fault_server.py"
)


def main(argv):
  """Measures both, several times in turn, and keeps the best of each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num_questions", type=int, default=400)
  parser.add_argument("--num_samples", type=int, default=4)
  parser.add_argument("--samples_per_request", type=int, default=4)
  parser.add_argument("--num_tokens", type=int, default=100)
  parser.add_argument("--concurrency", type=int, default=32)
  parser.add_argument("--endpoint", default="completions")
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--output")
  flags = parser.parse_args(argv)
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, cores[:1])
  server = subprocess.Popen(
    [sys.executable, _SERVER, f"--filler_tokens={flags.num_tokens - 15}"],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    os.sched_setaffinity(server.pid, cores[-1:])
    port = int(server.stdout.readline())
    taught = [_taught(flags, port) for _ in range(flags.repeats)]
    bare = [_bare(flags, port) for _ in range(flags.repeats)]
  finally:
    server.kill()
    server.wait()
  samples = flags.num_questions * flags.num_samples

  def rates(taken):
    wall, cpu = (min(times) for times in zip(*taken, strict=True))
    return {
      "samples_per_second": round(samples / wall, 1),
      "per_cpu_second": round(samples / cpu, 1),
    }

  result = {
    **{k: v for k, v in vars(flags).items() if k != "output"},
    "client_cores": 1,
    "server_shares_the_core": len(cores) == 1,
    "samples": samples,
    "teach": rates(taught),
    "bare_httpx": rates(bare),
    "load_average": os.getloadavg()[0],
  }
  print(json.dumps(result, indent=2))
  if flags.output:
    writing.write_text(flags.output, json.dumps(result, indent=2) + "\n")


def _problems(flags):
  return [
    standing.Problem(question_id=i, question=f"{i} + 1?", answer=str(i + 1))
    for i in range(flags.num_questions)
  ]


def _sampling(flags):
  return client.Sampling(model="local", endpoint=flags.endpoint)


def _taught(flags, port):
  """Seconds that sampling into an empty store takes, by clock and CPU."""
  prompt = prompts.load("few_shot_chain_of_thought")
  problems, asked = _problems(flags), _sampling(flags)
  connection = client.Connection(
    base_url=f"http://127.0.0.1:{port}/v1", concurrency=flags.concurrency
  )

  async def run(writer):
    async with client.Client(connection, asked) as teacher:
      now = standing.read(
        [], problems, num_samples=flags.num_samples, settings={}
      )
      sampler = sampling.Sampler(
        teacher,
        prompt,
        sampling.Committer(writer),
        limits_of_store=limits.Limits(),
        samples_per_request=flags.samples_per_request,
        progress=lambda _: None,
      )
      start = time.perf_counter(), time.process_time()
      await sampler.run(now, flags.concurrency)
      assert now.done == now.total
      return _since(start)

  with (
    tempfile.TemporaryDirectory() as directory,
    store.RecordWriter(directory) as writer,
  ):
    return asyncio.run(run(writer))


def _since(start):
  return time.perf_counter() - start[0], time.process_time() - start[1]


def _bare(flags, port):
  """The same of the same requests where nobody reads the answers."""
  prompt = prompts.load("few_shot_chain_of_thought")
  asked = _sampling(flags)
  path = "chat/completions" if flags.endpoint == "chat" else "completions"
  url = f"http://127.0.0.1:{port}/v1/{path}"
  bodies = [
    json.dumps(asked.body(prompt.render(one.question), flags.num_samples))
    for one in _problems(flags)
  ]

  async def run():
    todo = iter(bodies)
    async with httpx.AsyncClient(timeout=60) as http:

      async def work():
        for body in todo:
          answer = await http.post(url, content=body)
          answer.raise_for_status()

      start = time.perf_counter(), time.process_time()
      await asyncio.gather(*[work() for _ in range(flags.concurrency)])
      return _since(start)

  return asyncio.run(run())


if __name__ == "__main__":
  main(sys.argv[1:])
