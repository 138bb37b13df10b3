"""Text that others bring is read as what it says, or refused by its line."""

import bz2
import gzip
import json
import lzma

import hypothesis
import pytest
from hypothesis import strategies

from specialize_jax import errors
from specialize_jax.files import reading, writing


def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path):
  with (tmp_path / "config.json").open("wb") as file:
    file.truncate(reading.MAX_DESCRIPTION_BYTES + 1)
  with pytest.raises(errors.UserError, match="json has 268,435,457 bytes: exp"):
    reading.read_description(tmp_path / "config.json")
  with (tmp_path / "rows.jsonl").open("wb") as file:
    file.truncate(1 << 43)
  with pytest.raises(
    errors.UserError, match="rows.jsonl has 8,796,093,022,208"
  ):
    reading.read_rows(tmp_path / "rows.jsonl")


def test_rows_read_back_as_written(tmp_path):
  rows = [
    {"prediction": "a\nb\u2028c £", "target": "1", "correct": True},
    {"prediction": "", "target": "2", "correct": False},
  ]
  path = tmp_path / "deep" / "rows.jsonl"
  writing.write_rows(path, rows)
  assert reading.read_rows(path) == rows


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_saved_on_windows_reads_as_one_saved_on_linux(
  tmp_path, mark, line_end
):
  path = tmp_path / "given"
  text = f"{mark}first{line_end}second{line_end}"
  path.write_bytes(text.encode())
  assert reading.read_text(path) == "first\nsecond\n"
  rows = f'{mark}{{"a": "£"}}{line_end}{line_end}{mark}{{"a": 2}}{line_end}'
  path.write_bytes(rows.encode())
  assert reading.read_numbered_rows(path) == [(1, {"a": "£"}), (3, {"a": 2})]
  path.write_bytes(f'{mark}{{{line_end}"a": [1]}}{line_end}'.encode())
  assert reading.read_json(path) == {"a": [1]}


def test_a_line_that_is_no_row_is_named(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"a": 1}\n\n{"a": \n')
  with pytest.raises(errors.UserError, match="rows.jsonl, line 3 is not JSON"):
    reading.read_rows(path)
  path.write_text("[1]\n")
  with pytest.raises(errors.UserError, match="line 1 is not a JSON object"):
    reading.read_rows(path)
  path.write_text('{"a": ' + "[" * 100_000 + "\n")
  with pytest.raises(errors.UserError, match="line 1 is not JSON"):
    reading.read_rows(path)
  with pytest.raises(errors.UserError, match=r"there is no .*absent\.jsonl"):
    reading.read_rows(tmp_path / "absent.jsonl")
  with pytest.raises(errors.UserError, match="is a directory"):
    reading.read_rows(tmp_path)


def test_a_broken_json_file_is_named_with_its_line(tmp_path):
  path = tmp_path / "results.json"
  path.write_text('{"a": 1,\n "b": }\n')
  with pytest.raises(errors.UserError, match=r"results\.json, line 2 is not"):
    reading.read_json(path)
  path.write_text("[" * 100_000)
  with pytest.raises(errors.UserError, match=r"results\.json is not JSON"):
    reading.read_json(path)
  path.write_text('{"a": ' + "9" * 5000 + "}")
  with pytest.raises(errors.UserError, match=r"results\.json is not JSON"):
    reading.read_json(path)


@pytest.mark.parametrize("read", [reading.read_text, reading.read_rows])
def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path, read):
  path = tmp_path / "rows.jsonl"
  path.write_bytes('{"a": "£"}\n'.encode() + '{"a": "£"}\n'.encode("latin-1"))
  with pytest.raises(
    errors.UserError, match="line 2 is not UTF-8: byte 0xa3 at byte 8"
  ):
    read(path)
  for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
    path.write_bytes('{"a": "£"}\n'.encode(encoding))
    with pytest.raises(errors.UserError, match="is UTF-16: expected UTF-8"):
      read(path)
  path.write_bytes('{"a": "£"}\n'.encode("utf-32"))
  with pytest.raises(errors.UserError, match="is UTF-32: .*iconv -f UTF-32"):
    read(path)


def test_a_file_that_has_to_be_unpacked_is_named_as_such(tmp_path):
  path = tmp_path / "rows.jsonl.gz"
  for content, name in (
    (gzip.compress(b'{"a": 1}'), "gzip"),
    (bz2.compress(b'{"a": 1}'), "bzip2"),
    (lzma.compress(b'{"a": 1}'), "xz"),
  ):
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=f"is {name}: .* unpack it"):
      reading.read_rows(path)


def test_whole_numbers_of_any_size_stay_whole(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text('{"target": 123456789012345678901234567890}\n')
  assert reading.read_rows(path)[0]["target"] == 123456789012345678901234567890


ANY_TEXT = strategies.text(
  strategies.characters(codec=None, exclude_categories=())
)


@hypothesis.given(ANY_TEXT)
def test_any_string_survives_json(text):
  line = writing.to_json({"a": text})
  line.encode()  # UTF-8 holds it
  assert len(line.splitlines()) == 1
  # Two halves that meet in a JSON file are one character to every reader.
  whole = text.encode("utf-16", "surrogatepass").decode(
    "utf-16", "surrogatepass"
  )
  assert json.loads(line) == reading.loads(line) == {"a": whole}


def test_a_row_that_is_absurdly_long_is_refused(tmp_path):
  path = tmp_path / "rows.jsonl"
  row = '{"text": "' + "a" * reading.MAX_ROW_SIZE + '"}'
  path.write_text(f'{{"text": "b"}}\n{row}\n')
  with pytest.raises(errors.UserError, match="line 2 has more than 33,554,432"):
    reading.read_rows(path)


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
  path = tmp_path / "lines"
  with path.open("wb") as stream:
    stream.write(b"first\n")
    stream.truncate(1 << 40)  # a hole, which takes no room on disk
  lines = reading.lines(path)
  assert next(lines) == "first\n"
  with pytest.raises(errors.UserError, match="line 2 has more than 33,554,432"):
    next(lines)


def test_a_device_is_no_file(tmp_path):
  (tmp_path / "endless").symlink_to("/dev/zero")
  with pytest.raises(errors.UserError, match="endless is a device"):
    reading.read_bytes(tmp_path / "endless")
  assert reading.read_bytes("/dev/null") == b""


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_row_that_is_nested_too_deeply_is_refused(tmp_path, opening):
  path = tmp_path / "rows.jsonl"
  path.write_text(opening * 100_000)
  with pytest.raises(errors.UserError, match="line 1 is not JSON"):
    reading.read_rows(path)
  with pytest.raises(errors.UserError, match="is not JSON"):
    reading.read_json(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_of_objects_is_rows_as_lines_are(tmp_path, indent):
  rows = [{"doc_id": 0, "resps": [["\u2028 72"]]}, {"doc_id": 1}]
  path = tmp_path / "samples.jsonl"
  path.write_text(json.dumps(rows, indent=indent))
  assert reading.read_numbered_rows(path) == [(1, rows[0]), (2, rows[1])]
  for text in ("[]", "[1]", '[{"a": 1}, 2]', '[{"a": 1}', '[{"a": 1}]\n{}'):
    path.write_text(text)
    with pytest.raises(errors.UserError, match="line 1 is not"):
      reading.read_numbered_rows(path)


@pytest.mark.parametrize(
  "text",
  [
    '{\n  "a": "x{\u2028"\n}\n{\n  "a": 2\n}\n',  # jq, indent=2
    '\ufeff{"a":\n"x{\u2028"}\n\n\ufeff{"a": 2}',
    '{"a": "x{\u2028"}\r{"a": 2}\r',  # classic Mac
    '{"a": "x{\u2028"} {"a": 2}\n',
  ],
)
def test_objects_are_rows_wherever_their_lines_end(tmp_path, text):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(text.encode())
  rows = [(1, {"a": "x{\u2028"}), (2, {"a": 2})]
  assert reading.read_numbered_rows(path) == rows
  for broken in (text + "x", text.rstrip()[:-1], text + "[1]"):
    path.write_bytes(broken.encode())
    with pytest.raises(errors.UserError, match="line 1 is not JSON"):
      reading.read_numbered_rows(path)


@pytest.mark.parametrize(
  ("start", "name"),
  [
    (b"ARROW1\0\0", "Arrow"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY\x01\0", "NumPy's format"),
    (b"\x80\x04\x95\x1a", "a pickle"),
    (b"\x89HDF\r\n", "HDF5"),
    (b"PAR1\x15", "Parquet"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
  ],
)
def test_a_file_of_another_format_is_named(tmp_path, start, name):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(start)
  with pytest.raises(errors.UserError, match=f"is {name}"):
    reading.read_rows(path)
