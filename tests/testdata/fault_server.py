"""A local teacher that answers as OpenAI does, and fails as servers do.

Run as a program, in a process of its own; the first line it prints is its
port. It knows sums: a prompt's last "A + B" is answered by a short solution,
sometimes a wrong one, in which a serial number makes each sample unique.
`GET /stats` tells what was asked and what was delivered.
"""

import argparse
import asyncio
import collections
import functools
import gzip
import json
import math
import random
import re
import socket
import struct
import sys
import zlib

FAULTS = (
  "408",
  "409",
  "429",
  "429_retry_after",
  "500",
  "502",
  "reset",
  "cut_short",
  "malformed",
  "no_log_probs",
  "fewer",
  "stall",
  "wrong_types",
)
# What no retry heals: not drawn at random, only scripted.
HOSTILE = (
  "302",
  "bomb",
  "endless",
  "brotli",
  "reasoning",
  "stream",
  "spaced",
  "no_choices",
)
_SUM = re.compile(r"(\d+) \+ (\d+)")
_PIECES = re.compile(r"\s?\S+|\s")
_REASONS = {200: "OK", 429: "Too Many Requests"}


class Teacher:
  """Answers requests; what is random is drawn from one seed."""

  def __init__(self, flags):
    self._flags = flags
    self._rng = random.Random(flags.seed)
    self._script = [name for name in flags.script.split(",") if name]
    self._faults = flags.faults.split(",") if flags.faults != "all" else FAULTS
    self._serial = 0
    self.requests = 0
    self.asked = collections.Counter()
    self.delivered = collections.Counter()
    self.faults = collections.Counter()
    self.bodies = []
    self.first_path = None
    fillers = [f" word{i % 90}" for i in range(flags.filler_tokens)]
    self._filler_text = "".join(fillers)
    self._filler = {
      chat: [_joined(column) for column in _columns(fillers, chat)]
      for chat in (False, True)
    }

  async def serve(self, reader, writer):
    """Serves one connection until it ends."""
    try:
      while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
        path = head.split(b" ", 2)[1].decode()
        headers = dict(
          re.findall(r"(?m)^([^:\r\n]+): *(.*?)\r$", head.decode())
        )
        headers = {name.lower(): value for name, value in headers.items()}
        size = int(headers.get("content-length", 0))
        content = await reader.readexactly(size)
        if path == "/stats":
          await _send(writer, 200, json.dumps(self._stats()).encode())
        elif not await self._answer(path, headers, json.loads(content), writer):
          return
    except (asyncio.IncompleteReadError, ConnectionError):
      return  # the client has gone: killed, or done
    finally:
      writer.close()

  def _stats(self):
    return {
      "requests": self.requests,
      "asked": self.asked,
      "delivered": self.delivered,
      "faults": self.faults,
      "first_path": self.first_path,
      "first_body": self.bodies[0] if self.bodies else None,
    }

  async def _answer(self, path, headers, body, writer):
    """Answers one request; tells whether the connection goes on."""
    self.first_path = self.first_path or path
    chat = path.partition("?")[0].endswith("/chat/completions")
    prompt = body["messages"][-1]["content"] if chat else body["prompt"]
    question = " + ".join(_SUM.findall(prompt)[-1])
    self.requests += 1
    self.asked[question] += 1
    self.bodies[1:] = [body]
    fault = self._next_fault()
    if fault:
      self.faults[fault] += 1
    await asyncio.sleep(self._flags.latency_seconds * self._rng.random())
    if fault.isdigit() or fault == "429_retry_after":
      return await self._refuse(fault, headers, writer)
    if fault == "stall":
      await asyncio.sleep(self._flags.stall_seconds)
    num = body.get("n", 1) - (fault == "fewer")
    answer = self._completion(prompt, question, max(1, num), chat=chat)
    if fault in HOSTILE:
      return await _attack(writer, fault, answer)
    if fault == "no_log_probs":
      answer = re.sub(rb'"logprobs": \{', b'"logprobs": null, "_": {', answer)
    if fault == "own_alone":
      answer = re.sub(
        rb', " or": [^}]*', b"", answer
      )  # of the completions endpoint
    if fault == "malformed":
      answer = answer[: len(answer) // 2]
    if fault == "wrong_types":
      answer = self._wrong(answer)
      if _num_choices(answer) == num:  # all but the first are as they should
        self.delivered[question] += num - 1
    if fault in ("reset", "cut_short"):
      return await _break(writer, answer, reset=fault == "reset")
    if self._flags.gzip:
      await _send(
        writer, 200, gzip.compress(answer), "content-encoding: gzip\r\n"
      )
    else:
      await _send(writer, 200, answer)
    if fault in ("", "fewer"):
      self.delivered[question] += max(1, num)
    return True

  def _next_fault(self):
    if self._script:
      name = self._script.pop(0)
      return "" if name == "ok" else name
    if self._rng.random() >= self._flags.fault_rate:
      return ""
    return self._rng.choice(self._faults)

  async def _refuse(self, fault, headers, writer):
    status = int(fault[:3])
    said = {
      "error": {
        "message": f"{self._flags.words} to {headers.get('authorization')}",
        "code": f"code_{status}",
      }
    }
    extra = ""
    if fault == "429_retry_after":
      extra = f"retry-after: {self._flags.retry_after}\r\n"
    if fault == "302":
      extra = f"location: {self._flags.location}\r\n"
    await _send(writer, status, json.dumps(said).encode(), extra)
    return True

  def _completion(self, prompt, question, num, *, chat):
    choices = ", ".join(self._choice(question, chat) for _ in range(num))
    usage = {
      "prompt_tokens": len(prompt) // 4,
      "completion_tokens": num * 20,
    }
    return (
      f'{{"id": "x", "usage": {json.dumps(usage)}, "choices": [{choices}]}}'
    ).encode()

  def _choice(self, question, chat):
    a, b = map(int, question.split(" + "))
    self._serial += 1
    answer = a + b + (self._rng.random() < 0.3)
    text = f"As sample {self._serial},\n{question} = {answer}.\n"
    text += f"The answer is {answer}"
    pieces = _PIECES.findall(text)
    columns = [_joined(column) for column in _columns(pieces, chat)]
    filler = self._filler[chat]
    if self._filler_text:
      columns = [f"{a}, {b}" for a, b in zip(filler, columns, strict=True)]
    text = json.dumps(self._filler_text + text)
    reason = json.dumps(self._flags.finish_reason)
    if chat:
      return (
        f'{{"message": {{"role": "assistant", "content": {text}}},'
        f' "finish_reason": {reason},'
        f' "logprobs": {{"content": [{columns[0]}]}}}}'
      )
    tokens, log_probs, tops = columns
    return (
      f'{{"text": {text}, "finish_reason": {reason}, "logprobs": {{"tokens":'
      f' [{tokens}], "token_logprobs": [{log_probs}], "top_logprobs":'
      f" [{tops}]}}}}"
    )

  def _wrong(self, answer):
    """Spoils an answer in one of several ways."""
    return self._rng.choice(
      (
        b"[]",
        b'{"choices": {}}',
        b'{"choices": []}',
        b'{"choices": [7]}',
        re.sub(rb"-\d\.\d+", b'"low"', answer, count=1),
        re.sub(rb"-\d\.\d+", b"NaN", answer, count=1),
        re.sub(rb"-\d\.\d+", b"3.5", answer, count=1),
        re.sub(rb'"(text|content)": "[^"]*"', rb'"\1": 5', answer, count=1),
        re.sub(rb'"(As|token)"', b"12", answer, count=1),
        re.sub(rb"As sample", b"So sample", answer, count=1),
      )
    )


def _columns(pieces, chat):
  """Returns the lists of JSON that a choice's tokens fill."""
  tops = [
    {piece: -0.25, " or": -2.5, " so": -3.25, " it": -4.125, " a": -5.5}
    for piece in pieces
  ]
  if not chat:
    return pieces, [-0.25] * len(pieces), tops
  return (
    [
      {
        **_named(piece, -0.25),
        "top_logprobs": [_named(*one) for one in top.items()],
      }
      for piece, top in zip(pieces, tops, strict=True)
    ],
  )


def _named(token, log_prob):
  return {"token": token, "logprob": log_prob, "bytes": list(token.encode())}


def _joined(values):
  return ", ".join(json.dumps(value) for value in values)


async def _send(writer, status, content, extra=""):
  writer.write(_head(status, len(content), extra) + content)
  await writer.drain()


def _num_choices(answer):
  try:
    return len(json.loads(answer)["choices"])
  except (ValueError, TypeError, KeyError):
    return None


@functools.cache
def _bomb():
  """Compresses 256 MiB of spaces."""
  packer = zlib.compressobj(level=1, wbits=16 + zlib.MAX_WBITS)
  spaces = b" " * (1 << 20)
  return b"".join(packer.compress(spaces) for _ in range(256)) + packer.flush()


async def _attack(writer, fault, answer):
  """Answers as no retry heals; tells whether the connection goes on."""
  if fault == "bomb":
    await _send(writer, 200, _bomb(), "content-encoding: gzip\r\n")
  if fault == "brotli":
    await _send(writer, 200, b"\x1b\x00\x00", "content-encoding: br\r\n")
  if fault == "endless":
    writer.write(
      b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
      b"transfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
    while True:  # until the client hangs up
      writer.write(chunk)
      await writer.drain()
  if fault == "stream":
    await _send(writer, 200, b"data: " + answer + b"\n\ndata: [DONE]\n\n")
  if fault == "reasoning":  # its tokens are not in the text
    said = json.loads(answer)
    for choice in said["choices"]:
      choice["message"]["reasoning_content"] = "hm"
      choice["message"]["content"] += ", I think"
    await _send(writer, 200, json.dumps(said).encode())
  if fault == "no_choices":
    await _send(writer, 200, b'{"choices": []}')
  if fault == "spaced":  # tokens of no known alphabet
    answer = answer.replace(b'"token": " ', b'"token": "@')
    await _send(writer, 200, answer.replace(b'"bytes": [32', b'"bytes": [64'))
  return True


def _head(status, size, extra=""):
  return (
    f"HTTP/1.1 {status} {_REASONS.get(status, 'No')}\r\n"
    f"content-type: application/json\r\ncontent-length: {size}\r\n{extra}\r\n"
  ).encode()


async def _break(writer, answer, *, reset):
  """Sends half an answer, then resets the connection or closes it."""
  writer.write(_head(200, len(answer)) + answer[: len(answer) // 2])
  await writer.drain()
  if reset:
    linger = struct.pack("ii", 1, 0)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
  return False


async def main(argv):
  parser = argparse.ArgumentParser()
  parser.add_argument("--fault_rate", type=float, default=0.0)
  parser.add_argument("--faults", default="all")
  parser.add_argument("--script", default="", help="faults, in order, or ok")
  parser.add_argument("--stall_seconds", type=float, default=60.0)
  parser.add_argument("--retry_after", default="0.2")
  parser.add_argument("--finish_reason", default="stop")
  parser.add_argument("--gzip", action="store_true")
  parser.add_argument("--location", default="http://127.0.0.1:9/v1")
  parser.add_argument("--words", default="the server says no")
  parser.add_argument("--latency_seconds", type=float, default=0.0)
  parser.add_argument("--filler_tokens", type=int, default=0)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args(argv)
  assert math.isfinite(flags.stall_seconds)
  teacher = Teacher(flags)
  server = await asyncio.start_server(teacher.serve, "127.0.0.1", 0)
  print(server.sockets[0].getsockname()[1], flush=True)
  await server.serve_forever()


if __name__ == "__main__":
  asyncio.run(main(sys.argv[1:]))
