"""A Korean multiple-choice domain with JSON answers, and its teacher.

A customer's message is for one of four departments, which are offered as 가,
나, 다 and 라; the answer is a JSON object with the letter, which the rows of a
set hold as text:

    {"question": "문의: 책이 아직 안 왔어요. (가) 환불 (나) 배송 (다) 결제
     (라) 교환", "answer": "{\"정답\": \"나\"}"}

(The order is always the same: to find a letter by its place, a student of half
a million parameters that starts from nothing takes more than some hundred
steps.)

Run as a program it is a chat endpoint, whose tokens are two bytes each: they
end within characters, as those of a byte-level BPE do. The first line that it
prints is its port.
"""

import collections
import http.server
import json
import math
import random

from testdata import tiny_vocabulary

LETTERS = "가나다라"
GOODS = ("책", "신발", "시계", "가방", "모자")
DEPARTMENTS = {
  "배송": ("{goods}이 아직 안 왔어요", "{goods}은 언제 도착하나요"),
  "환불": ("{goods} 값을 돌려받고 싶어요", "{goods}을 취소하고 돈을 받을래요"),
  "교환": ("{goods}을 다른 색으로 바꿔 주세요", "{goods} 크기가 안 맞아요"),
  "결제": ("{goods} 카드가 승인되지 않아요", "{goods} 값이 두 번 나갔어요"),
}  # fmt: skip
OPTIONS = " ".join(
  f"({letter}) {name}"
  for letter, name in zip(LETTERS, DEPARTMENTS, strict=True)
)
STYLES = {
  "글": (
    "안녕하세요. {said}. 주문 번호는 {number}입니다.",
    "질문이에요, {said}, 번호 {number}.",
  ),
  "전화": ("저기요, 여보세요, {said}. 번호요? {number}번이요.",),
}  # fmt: skip
SETS = {
  "학습": ("글", 400),
  "검증": ("글", 60),
  "시험": ("글", 120),
  "전화": ("전화", 160),
}
MISTAKE = 0.08  # how often the teacher names another letter

YAML = """\
name: quiz
vocabulary: {file: 어휘.model, extra_ids: 0}
sets: {train: 학습.jsonl, validation: 검증.jsonl, test: 시험.jsonl}
answer: {json: 정답}
out_of_distribution: {phone: 전화.jsonl}
general:
  sums: {test: 덧셈.jsonl, answer: {json: 결과.값, compare: number}}
teacher:
  prompt: |
    다음 문의를 맡을 부서를 고르세요.

    문의: {question}
    차례로 생각하고, 마지막 줄에 {"정답": "가"} 처럼 답하세요.
student:
  chain_of_thought: "문의: {question}\\n풀이:"
  answer_only: "문의: {question}\\n답:"
  demonstrations: 2
"""


def write_question(style, rng):
  """Returns a question and the letter of its answer."""
  place = rng.randrange(len(LETTERS))
  said = rng.choice(list(DEPARTMENTS.values())[place])
  question = rng.choice(STYLES[style]).format(
    said=said.format(goods=rng.choice(GOODS)), number=rng.randrange(100, 1000)
  )
  return f"{question} {OPTIONS}", LETTERS[place]


def choices(question):
  """Returns the teacher's choices, one after another: texts and weights."""
  message = question.removesuffix(OPTIONS)
  (name,) = (
    name
    for name, templates in DEPARTMENTS.items()
    if any(
      template.format(goods=goods) in message
      for template in templates
      for goods in GOODS
    )
  )
  letter = LETTERS[list(DEPARTMENTS).index(name)]
  others = [other for other in LETTERS if other != letter]
  return [
    [(f"{name}에 관한 문의이다.", 0.7), (f"이것은 {name} 문의이다.", 0.3)],
    [(f" 보기에서 ({letter}) {name}.", 1.0)],
    [
      (f"\n{stated(letter)}", 1 - MISTAKE),
      *((f"\n{stated(other)}", MISTAKE / 3) for other in others),
    ],
  ]


def stated(letter):
  """Returns the last line of a solution."""
  return json.dumps({"정답": letter}, ensure_ascii=False)


def write(folder, rng=None):
  """Writes the domain; returns the dataset file."""
  rng = rng or random.Random(19)
  seen, texts = set(), []
  for name, (style, size) in SETS.items():
    rows = []
    while len(rows) < size:
      question, letter = write_question(style, rng)
      if question in seen:
        continue
      seen.add(question)
      rows.append({"question": question, "answer": stated(letter)})
      texts.append(question)
      texts += ["".join(text for (text, _), *_ in choices(question))]
    _write_rows(folder / f"{name}.jsonl", rows)
  sums = [
    {"question": f"{i} 더하기 {i}은?", "answer": {"결과": {"값": 2 * i}}}
    for i in range(4)
  ]
  _write_rows(folder / "덧셈.jsonl", sums)
  texts += ["문의: 풀이:", "문의: 답:"] * 100
  (folder / "어휘.model").write_bytes(
    tiny_vocabulary.train(
      texts,
      vocab_size=500,
      byte_fallback=True,
      normalization_rule_name="nfkc",
    )
  )
  path = folder / "퀴즈.yaml"
  path.write_text(YAML, encoding="utf-8")
  return path


def _write_rows(path, rows):
  lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  path.write_text("".join(lines), encoding="utf-8")


def sample(question, *, temperature, num_top, rng):
  """Draws a solution, two bytes a token; returns chat log-probabilities."""
  said = []
  for choice in choices(question):
    open_ = [(text.encode(), weight) for text, weight in choice]
    for place in range(0, max(len(text) for text, _ in open_), 2):
      shares = collections.Counter()
      for text, weight in open_:
        if text[place : place + 2]:
          shares[text[place : place + 2]] += weight
      total = shares.total()
      weights = [(n / total) ** (1 / max(temperature, 1e-3)) for n in
                 shares.values()]  # fmt: skip
      (drawn,) = rng.choices(list(shares), weights)
      said.append(
        {
          **_token(drawn, shares[drawn] / total),
          "top_logprobs": [
            _token(token, share / total)
            for token, share in shares.most_common(num_top)
          ],
        }
      )
      open_ = [
        (text, weight)
        for text, weight in open_
        if text[place : place + 2] == drawn
      ]
      if all(len(text) <= place + 2 for text, _ in open_):
        break
  return said


def _token(content, probability):
  return {
    "token": content.decode("utf-8", "replace"),
    "bytes": list(content),
    "logprob": math.log(probability),
  }


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one request of the chat endpoint."""

  protocol_version = "HTTP/1.1"
  rng = random.Random(0)

  def do_POST(self):
    """Samples as often as the request asks."""
    size = int(self.headers["Content-Length"])
    request = json.loads(self.rfile.read(size))
    prompt = request["messages"][-1]["content"]
    question = prompt.partition("문의: ")[2].partition("\n")[0]
    made, num_tokens = [], 0
    for index in range(request.get("n", 1)):
      tokens = sample(
        question,
        temperature=request.get("temperature", 1.0),
        num_top=request.get("top_logprobs", 5),
        rng=self.rng,
      )
      num_tokens += len(tokens)
      text = b"".join(bytes(token["bytes"]) for token in tokens).decode()
      made.append(
        {
          "index": index,
          "message": {"role": "assistant", "content": text},
          "finish_reason": "stop",
          "logprobs": {"content": tokens},
        }
      )
    usage = {"prompt_tokens": len(prompt), "completion_tokens": num_tokens}
    content = json.dumps({"choices": made, "usage": usage}).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    self.wfile.write(content)

  def log_message(self, *_):
    """Prints nothing for each request."""


def main():
  """Serves until it is stopped; prints its port first."""
  http.server.ThreadingHTTPServer.request_queue_size = 128
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  print(server.server_port, flush=True)
  server.serve_forever()


if __name__ == "__main__":
  main()
