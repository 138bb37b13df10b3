"""A stranger's text in a page runs no script and asks for nothing.

Every text of every file that a report or `inspect` shows is made hostile; a
real browser opens the page, beside a server that would be asked.
"""

import http.server
import json
import re
import threading

import pytest
from testdata import tiny_world

from reports import browser_test
from specialize_jax.cli import main
from specialize_jax.files import writing
from specialize_jax.records import store
from specialize_jax.reports import markdown, page
from specialize_jax.reports import results as results_lib

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

_RUN = "document.documentElement.setAttribute(String.fromCharCode(114),1)"


def attack(port):
  """Markup of many kinds, to be put into a text."""
  here = f"//127.0.0.1:{port}"
  return (
    f"\"'>--></title></style></script></text></svg><script>{_RUN}</script>"
    f"<img src={here}/i onerror={_RUN}><svg onload={_RUN}>"
    f"<iframe srcdoc='<script src={here}/f></script>'></iframe>"
    f"<link rel=stylesheet href={here}/c><meta http-equiv=refresh"
    f" content='0;url=http:{here}/m'><style>@import url({here}/s);</style>"
    f"<base href={here}><object data={here}/o></object>"
    f"<a href=javascript:{_RUN} autofocus onfocus={_RUN}>x</a>"
    f"]]><![CDATA[ &#60;script&#62;{_RUN}&#60;/script&#62;"
    f" ![x](http:{here}/md) $\\frac{{1}}$ \x1b]0;t\x07\x1b[2J\x9b2J \u202e"
  )


# For a name: of a file, and so without slashes, and short.
_NAMED = f"\"'><img src=x onerror={_RUN}>"


@pytest.fixture
def asked():
  """A server on this machine; the paths that it was asked for."""
  paths = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      paths.append(self.path)
      self.send_response(200)
      self.end_headers()

    def log_message(self, *_):
      return

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield server.server_port, paths
  server.shutdown()
  server.server_close()


def _opened(path):
  """The page as a browser has it after its scripts have run."""
  return browser_test._chromium(
    "--virtual-time-budget=3000", "--dump-dom", f"file://{path}"
  )


def _ran(dom):
  return re.search(r"<html[^>]* r=", dom) is not None


def _hostile(value, text):
  """A JSON value with a text added to each of its texts."""
  if isinstance(value, str):
    return value + text
  if isinstance(value, list):
    return [_hostile(item, text) for item in value]
  if isinstance(value, dict):
    return {name: _hostile(item, text) for name, item in value.items()}
  return value


@pytest.fixture
def hostile_results(results_dir, tmp_path, asked):
  """The results of a demo whose texts, and the names of tasks, attack."""
  text = attack(asked[0])
  copied = tmp_path / "results"
  for file in sorted(results_dir.rglob("*.json*")):
    content = file.read_text()
    # Names of tasks belong together, in every file and as a file's name.
    content = re.sub(
      r'"(mini_\w+?_v1)(/\w+)?"',
      lambda m: json.dumps(m[1] + _NAMED + (m[2] or "")),
      content,
    )
    name = re.sub(r"(mini_\w+_v1)\.", lambda m: f"{m[1]}{_NAMED}.", file.name)
    place = copied / file.relative_to(results_dir).with_name(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    if "predictions" in file.parts or "example" in file.name:
      rows = (
        [_hostile(json.loads(row), text) for row in content.splitlines()]
        if file.suffix == ".jsonl"
        else None
      )
      if rows is None:
        place.write_text(json.dumps(_hostile(json.loads(content), text)))
      else:
        writing.write_rows(place, rows)
    else:
      place.write_text(content)
  (copied / "specialize" / "changes.jsonl").write_text(
    json.dumps({"step": 1, "date": text, "changes": {text: [text, text]}})
  )
  return copied


@pytest.mark.third_party
def test_a_page_with_a_script_is_found_out(tmp_path, asked):
  port, paths = asked
  place = tmp_path / "page.html"
  place.write_text(f"<html><body>{attack(port)}</body></html>")
  _opened(place)  # which leads away
  assert paths
  place.write_text(f"<html><body><img src=x onerror={_RUN}></body></html>")
  assert _ran(_opened(place))


@pytest.mark.third_party
def test_a_report_of_hostile_texts_runs_nothing_and_asks_nothing(
  hostile_results, tmp_path, asked
):
  report = page.document(results_lib.load(hostile_results))
  text = page.render(report)
  assert _NAMED[:6] not in text
  assert "CDATA" in text  # it is shown, as text
  place = tmp_path / "report.html"
  writing.write_text(place, text)
  dom = _opened(place)
  assert "Specialization report" in dom  # it has not led away
  assert not _ran(dom)
  assert asked[1] == []
  markdown.write(report, tmp_path / "report.md")
  for figure in (tmp_path / "report_figures").glob("*.svg"):
    assert not _ran(_opened(figure))
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", figure.read_text())
  assert asked[1] == []
  written = (tmp_path / "report.md").read_text()
  assert "![x]" not in re.sub(r"(?s)^```.*?^```", "", written, flags=re.M)
  assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", written)


def test_the_terminal_gets_no_control_sequence(hostile_results, capsys):
  assert not main.main(["report", f"--results_dir={hostile_results}"])
  shown = capsys.readouterr()
  for text in (shown.out, shown.err):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


@pytest.mark.third_party
def test_inspect_shows_a_hostile_record_as_text(tmp_path, asked, capsys):
  world = tiny_world.build(tmp_path / "world")
  text = attack(asked[0])
  row = {
    "question_id": f"id {text}",
    "question": text,
    "rationale": f"So {text} it is. The answer is 5.",
    "answer": "5",
  }
  with store.RecordWriter(tmp_path / "records") as writer:
    writer.append(tiny_world.record(row, 0))
  place = tmp_path / "sample.html"
  status = main.main(
    [
      "inspect",
      f"--records={tmp_path}/records",
      f"--vocabulary={world}/mini/student.model",
      "--mode=whitespace",
      f"--html={place}",
    ]
  )
  assert status == 0
  out = capsys.readouterr().out
  assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out)
  dom = _opened(place)
  assert "sample 0" in dom
  assert not _ran(dom)
  assert asked[1] == []
