"""A local teacher of tickets, behind an OpenAI-compatible endpoint.

    python teacher_server.py --port=8077

It answers POST /v1/completions with `n` samples and the exact log-probabilities
of its tokens, which are words. Real teachers are larger; nothing else differs.
"""

import argparse
import collections
import http.server
import itertools
import json
import math
import random
import re

import tickets

_TOKEN = re.compile(r" ?[^\s]+")
_TICKET = re.compile(r"Ticket: (.+)")


def sample(ticket, *, temperature, num_alternatives, rng):
  """Draws a solution, word by word.

  Returns:
    The tokens; their log-probabilities; and of each token the likeliest
    alternatives with theirs. All are the model's own, at temperature 1.
  """
  tokens, log_probs, tops = [], [], []
  for number, choice in enumerate(tickets.choices(ticket)):
    # What can still be said of this choice: its words, and its probability.
    open_ = [
      (_TOKEN.findall(text if number == 0 else f" {text}"), weight)
      for text, weight in choice
    ]
    for place in itertools.count():
      shares = collections.Counter()
      for words, weight in open_:
        if place < len(words):
          shares[words[place]] += weight
      if not shares:
        break
      total = shares.total()
      drawn = rng.choices(
        list(shares),
        [(share / total) ** (1 / max(temperature, 1e-3)) for share in
         shares.values()],
      )[0]  # fmt: skip
      tokens.append(drawn)
      log_probs.append(math.log(shares[drawn] / total))
      tops.append(
        {
          word: math.log(share / total)
          for word, share in shares.most_common(num_alternatives)
        }
      )
      open_ = [
        (words, weight)
        for words, weight in open_
        if place < len(words) and words[place] == drawn
      ]
  return tokens, log_probs, tops


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request."""

  protocol_version = "HTTP/1.1"
  rng = random.Random(0)

  def do_POST(self):  # noqa: N802  (the library's name)
    """Samples as often as the request asks."""
    size = int(self.headers["Content-Length"])
    request = json.loads(self.rfile.read(size))
    asked = _TICKET.findall(request["prompt"])[-1]
    choices, num_tokens = [], 0
    for index in range(request.get("n", 1)):
      tokens, log_probs, tops = sample(
        asked,
        temperature=request.get("temperature", 1.0),
        num_alternatives=request.get("logprobs", 5),
        rng=self.rng,
      )
      num_tokens += len(tokens)
      choices.append(
        {
          "index": index,
          "text": "".join(tokens),
          "finish_reason": "stop",
          "logprobs": {
            "tokens": tokens,
            "token_logprobs": log_probs,
            "top_logprobs": tops,
          },
        }
      )
    usage = {
      "prompt_tokens": len(request["prompt"].split()),
      "completion_tokens": num_tokens,
    }
    content = json.dumps({"choices": choices, "usage": usage}).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *_):
    """Prints nothing for each request."""


def main():
  """Serves until it is stopped; prints its port first."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--port", type=int, default=0)
  flags = parser.parse_args()
  http.server.ThreadingHTTPServer.request_queue_size = 128
  server = http.server.ThreadingHTTPServer(("127.0.0.1", flags.port), Handler)
  print(server.server_port, flush=True)
  server.serve_forever()


if __name__ == "__main__":
  main()
