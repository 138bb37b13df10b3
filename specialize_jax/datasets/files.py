"""A user's own domain, in one YAML file.

YAML, and not gin: a dataset file may come from someone else, and a gin file can
run code. Every key and every row is checked when the file is read, and all
mistakes are reported at once, with line numbers, before any teacher call or
training. `docs/own_domain.md` describes the keys.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence

import sentencepiece
import yaml
from etils import epath

from specialize_jax import errors
from specialize_jax.cot import answer_rules, formats
from specialize_jax.data import questions, record_filter, sources, splits
from specialize_jax.datasets import description
from specialize_jax.datasets import mistakes as mistakes_lib
from specialize_jax.datasets import rows as rows_lib
from specialize_jax.files import paths, reading, writing

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 100
_BRACKET = re.compile(r"[\[\]{}]")
_TFDS_DIR = "tfds"
_CHECKED_ROWS = 1000  # of each set, written and read by the vocabulary
_MAX_UNKNOWN = 0.2  # of the tokens of all questions
_DEMONSTRATIONS = 4
_MAX_DEMONSTRATIONS = 64
_MAX_EXTRA_IDS = 10_000
_MAX_NAME = 60  # characters: files and folders are called after it
_NAME_EXPECTED = (
  "expected a name that begins with a small letter (a to z) and has small"
  f" letters, digits and underscores only, at most {_MAX_NAME} in all"
)
# Datasets and benchmarks of ours, and what all names of such ones begin with.
_OURS = re.compile(
  r"(gsm8k|multiarith|asdiv|svamp|math|math_all|math_ood)"
  r"(_teacher|_specialize|_validation|_test|_general|_ood)?|(mini|bbh)(_.*)?"
)
# A set of one of these names would have a mixture's, or the teacher's tasks, or
# be taken for one of `sets`.
_MIXTURES = ("teacher", "specialize", "validation", "test", "general",
             "out_of_distribution_validation", "train",
             "demonstrations")  # fmt: skip

_STUDENT = ("chain_of_thought", "answer_only", "answer", "demonstrations")
_KEYS = ("name", "vocabulary", "sets", "answer", "out_of_distribution",
         "general", "teacher", "student", "tfds_dir")  # fmt: skip
_SETS = ("train", "validation", "test", "demonstrations")
_FOUND = {"regex": "pattern", "json": "field", "python": "function"}
# What to do about the errors of YAML that text without quotes makes.
_YAML_HINTS = (
  ("unknown escape character", "write the text in single quotes, in which a"
   " backslash is itself: '\\w+'"),
  ("mapping values are not allowed", "write a text with a colon and a blank in"
   " it in quotes, and indent the keys of a mapping alike"),
  ("but got ':'", "write a text with a colon and a blank in it in quotes"),
  ("expected <block end>", "write a text that begins with {, [ or a quotation"
   " mark in quotes as a whole, and indent the keys of a mapping alike"),
  ("'\\t' that cannot start", "use blanks instead of tabs"),
  ("that cannot start any token", "write the text in quotes"),
  ("unexpected end of stream", "a quotation mark or bracket is not closed"),
)  # fmt: skip
_PLACE = re.compile(r"{[ \t]*([^{}\s\"',:]{1,40})[ \t]*}")

_STR, _INT = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:int")
_MERGE = "<<"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFile:
  """A dataset file without mistakes.

  Attributes:
    path: the path of the file.
    content: its bytes, which are copied to a run's directory.
    dataset: the dataset that it describes.
    train: the training questions, without those held out for validation, each
      with its row's id.
    sizes: the number of questions by set.
  """

  path: str
  content: bytes
  dataset: description.Dataset
  train: Sequence[rows_lib.Row]
  sizes: Mapping[str, int]


def load(path: str, flag: str = "--dataset") -> DatasetFile:
  """Reads a dataset file and all its sets.

  Args:
    path: the YAML file; paths in it are relative to its folder.
    flag: how the user gave it, for errors.

  Raises:
    ReportError: the file or its sets have mistakes; all are named.
    UserError: the file cannot be read, or is no YAML.
  """
  content = reading.read_bytes(path)
  mistakes = mistakes_lib.Mistakes()
  root = _composed(path, content, flag)
  reader = _Reader(path, mistakes)
  parts = reader.dataset(root)
  if not reader.is_answer_known:  # no row can be judged
    mistakes.raise_any(f"{flag}={path}")
  sets = _Sets(parts, mistakes)
  mistakes.raise_any(f"{flag}={path}")
  return sets.file(path, content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
  """The parts of a dataset file that do not depend on its sets.

  Attributes:
    path: the path of the file.
    wording: the student's prompts and statements of answers.
    rule: the rule that finds an answer and compares it.
  """

  path: str
  wording: formats.Wording
  rule: answer_rules.AnswerRule

  def rule_to_run(self) -> answer_rules.AnswerRule:
    """Returns the rule, unless it names a Python function.

    Raises:
      UserError: it names a function. The file in a checkpoint is not trusted
        to choose code to run; one that the user gives by a flag is.
    """
    if self.rule.kind == "python" or self.rule.compare.startswith(
      answer_rules.PYTHON
    ):
      raise errors.UserError(
        f"{self.path} finds answers by a Python function, which the file in a"
        " checkpoint cannot choose: give --dataset=FILE.yaml"
      )
    return self.rule


def kept(content: bytes, path: str) -> Kept:
  """Reads a dataset file whose sets need not exist; imports nothing.

  Args:
    content: the content of a dataset file, such as that of a run.
    path: the path of the file, for error messages.

  Raises:
    UserError: it is not a dataset file.
  """
  mistakes = mistakes_lib.Mistakes()
  reader = _Reader(path, mistakes, imports=False)
  top = reader.mapping(_composed(path, content, path), "the file", _KEYS)
  rule = reader.rule(top.get("answer"))
  wording, _ = reader.student(top.get("student"), rule)
  mistakes.raise_any(path)
  return Kept(path=path, wording=wording, rule=rule)


def _composed(path: str, content: bytes, flag: str) -> yaml.Node:
  """Parses YAML into nodes, which have line numbers."""
  text = reading.decode(content, path)
  if len(content) > _MAX_BYTES:
    raise errors.UserError(
      f"{flag}={path} has {len(content):,} bytes: expected at most"
      f" {_MAX_BYTES:,}; put the rows into files of their own"
    )
  _check_nesting(text, f"{flag}={path}")
  try:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
  except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or type(error).__name__
    if isinstance(error, yaml.reader.ReaderError):
      place = f", line {text.count(chr(10), 0, error.position) + 1}"
      problem = f"the character U+{error.character:04X} is not text"
    hints = (hint for words, hint in _YAML_HINTS if words in problem)
    hint = next((f"; {hint}" for hint in hints), "")
    raise errors.UserError(
      f"{flag}={path}{place} is not YAML: {problem}{hint}"
    ) from error
  if root is None:
    raise errors.UserError(f"{flag}={path} is empty: expected a dataset file")
  return root


def _check_nesting(text: str, where: str) -> None:
  """Raises UserError for deep nesting, which is slow to parse (quadratic)."""
  depth = 0
  for bracket in _BRACKET.finditer(text):
    depth += 1 if bracket[0] in "[{" else -1
    if depth > _MAX_DEPTH:
      line = text.count("\n", 0, bracket.start()) + 1
      raise errors.UserError(
        f"{where}, line {line} is nested too deeply: expected at most"
        f" {_MAX_DEPTH} open brackets"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Set:
  """A file of rows.

  Attributes:
    path: the path of the file.
    line: the line of the dataset file that names it.
  """

  path: str
  line: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
  """A benchmark in or out of distribution, or a general one.

  Attributes:
    name: its name; "" for the one in distribution.
    kind: the key that it is under; "" for the one in distribution.
    sets: its files by split; {"": file} for one file of both splits.
    rule: the rule that finds an answer and compares it.
  """

  name: str
  kind: str
  sets: Mapping[str, _Set]
  rule: answer_rules.AnswerRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parts:
  """The content of a dataset file, before its sets are read."""

  name: str
  folder: str
  file: str
  vocabulary: description.Vocabulary
  vocabulary_line: int
  answer_line: int
  members: Sequence[_Member]
  rule: answer_rules.AnswerRule
  wording: formats.Wording
  num_demonstrations: int
  demonstrations_line: int
  teacher_prompt: str | None
  tfds_dir: str
  prompts: Mapping[str, tuple[int, str]]  # line and text, by key


class _Reader:
  """Reads nodes, and collects their mistakes."""

  def __init__(
    self, path: str, mistakes: mistakes_lib.Mistakes, *, imports: bool = True
  ) -> None:
    self._path = path
    self._imports = imports
    self._dataset_name = ""
    self._kinds: dict[str, str] = {}  # of the sets that have names
    self._folder = os.path.dirname(os.path.abspath(path))
    self._mistakes = mistakes
    self._prompts: dict[str, tuple[int, str]] = {}
    self.is_answer_known = True

  def dataset(self, root: yaml.Node) -> _Parts:
    top = self.mapping(root, "the file", _KEYS, required=("name", "vocabulary",
                       "sets", "answer"))  # fmt: skip
    before = len(self._mistakes)
    rule = self.rule(top.get("answer"))
    wording, num_demonstrations = self.student(top.get("student"), rule)
    known = "answer" in top and len(self._mistakes) == before
    self.is_answer_known = known
    name = self._name(top.get("name"))
    members = [self._inside(top.get("sets"), rule)]
    for kind in ("out_of_distribution", "general"):
      members += self._members(kind, top.get(kind), rule)
    vocabulary = self._vocabulary(top.get("vocabulary"))
    return _Parts(
      name=name,
      folder=self._folder,
      file=self._path,
      vocabulary=vocabulary,
      vocabulary_line=_line(top.get("vocabulary")),
      answer_line=_line(top.get("answer")),
      members=members,
      rule=rule,
      wording=wording,
      num_demonstrations=num_demonstrations,
      demonstrations_line=_line(top.get("student")),
      teacher_prompt=self._teacher(top.get("teacher")),
      tfds_dir=self._tfds_dir(top.get("tfds_dir")),
      prompts=self._prompts,
    )

  def mapping(
    self,
    node: yaml.Node | None,
    what: str,
    keys: Sequence[str] | None = None,
    *,
    required: Sequence[str] = (),
  ) -> dict[str, yaml.Node]:
    """Returns a mapping's nodes by key; reports unknown and missing keys."""
    if node is None:
      return {}
    if not isinstance(node, yaml.MappingNode):
      example = f", such as {keys[0]}: ..." if keys else ""
      if _is_empty(node) and not required:
        example += "; or leave it out"
      self._add(
        node, f"{what} is {_shown(node)}: expected keys with values{example}"
      )
      return {}
    found: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
      key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
      if key == _MERGE:
        self._add(
          key_node,
          f"{what} has {_MERGE}, which is not read: write out its keys",
        )
        continue
      if key in found:
        self._add(key_node, f"{_short(key)} occurs twice in {what}")
      elif keys is not None and key not in keys:
        hint = errors.did_you_mean(key, keys) or f"known: {', '.join(keys)}"
        self._add(key_node, f"{_short(key)} is not a key of {what}; {hint}")
      found[key] = value
    for key in required:
      if key not in found:
        self._add(node, f"{what} lacks {key!r}")
    return found

  def rule(self, node: yaml.Node | None) -> answer_rules.AnswerRule:
    """Reads the answer rule; if it has a mistake, that of numbers."""
    if node is None:
      return answer_rules.NUMBER
    fields: dict[str, str | tuple[str, ...]] = {}
    if isinstance(node, yaml.MappingNode):
      before = len(self._mistakes)
      parts = self.mapping(node, "answer", (*_FOUND, "compare"))
      kinds = [key for key in parts if key in _FOUND]
      if len(kinds) != 1 and len(self._mistakes) == before:
        words = (k for k in answer_rules.ALL_KINDS if k not in _FOUND)
        self._add(
          node,
          f"answer has {len(kinds)} of {', '.join(_FOUND)}: expected one, or a"
          f" word: {', '.join(words)}",
        )
      if len(self._mistakes) > before:
        return answer_rules.NUMBER
      (kind,) = kinds
      fields["kind"] = kind
      value = parts[kind]
      if kind == "json" and isinstance(value, yaml.SequenceNode):
        fields["fields"] = tuple(
          self._text(one, "answer.json") or "" for one in value.value
        )
        if not value.value:
          self._add(value, "answer.json is an empty list: expected fields")
      else:
        fields[_FOUND[kind]] = self._text(value, f"answer.{kind}") or ""
      if "compare" in parts:
        compare = self._text(parts["compare"], "answer.compare")
        fields["compare"] = compare or "exact"
      if len(self._mistakes) > before:
        return answer_rules.NUMBER
    else:
      word = self._text(node, "answer")
      if word is None:
        return answer_rules.NUMBER
      if word.startswith(answer_rules.PYTHON):
        fields = {
          "kind": "python",
          "function": word.removeprefix(answer_rules.PYTHON),
        }
      else:
        fields["kind"] = word
        if word in _FOUND:
          self._add(node, f"answer: {word} needs a value, as in `{word}: ...`")
          return answer_rules.NUMBER
    made = answer_rules.AnswerRule(**fields)
    why = answer_rules.why_not(made, imports=self._imports)
    if why:
      self._add(node, f"answer: {why}")
      return answer_rules.NUMBER
    return made

  def student(
    self, node: yaml.Node | None, rule: answer_rules.AnswerRule
  ) -> tuple[formats.Wording, int]:
    """Reads the student's wording, and its number of demonstrations."""
    parts = self.mapping(node, "student", _STUDENT)
    words: dict[str, str] = {}
    if rule.kind == "json" and "answer" not in parts:
      words["answer"] = _json_answer(rule)
    is_json = rule.kind == "json" and not rule.fields
    for key in ("chain_of_thought", "answer_only", "answer"):
      place = formats.ANSWER if key == "answer" else formats.QUESTION
      template = self._template(parts.get(key), f"student.{key}", place)
      if template is not None:
        words[key] = template
    if "answer_only" in words:
      words["in_context_answer_only"] = words["answer_only"]
    number = _DEMONSTRATIONS
    if "demonstrations" in parts:
      value = parts["demonstrations"]
      number = self._whole(
        value, "student.demonstrations", 1, _MAX_DEMONSTRATIONS
      )
    return formats.Wording(**words, answer_is_json=is_json), number

  def _whole(
    self, node: yaml.Node, what: str, at_least: int, at_most: int
  ) -> int:
    """Reads a whole number; `at_least` where there is another value."""
    text = node.value if node.tag == _INT else ""
    if text.isdecimal() and at_least <= int(text[:20]) <= at_most:
      return int(text)
    is_quoted = node.tag == _STR and node.value.strip().isdecimal()
    self._add(
      node,
      f"{what} is {_shown(node)}: expected a whole number from {at_least} to"
      f" {at_most:,}{', without quotes' if is_quoted else ''}",
    )
    return at_least

  def _add(self, node: yaml.Node, text: str) -> None:
    self._mistakes.add(self._path, _line(node), writing.printable(text))

  def _text(
    self, node: yaml.Node | None, what: str, expected: str = "text"
  ) -> str | None:
    if node is None:
      return None
    if not isinstance(node, yaml.ScalarNode) or node.tag != _STR:
      hint = ""
      if isinstance(node, yaml.ScalarNode) and node.value:
        hint = f", in quotes where it looks like none: '{node.value[:40]}'"
      elif expected == "text" and isinstance(node, yaml.CollectionNode):
        hint = ", in quotes if it begins with { or ["
      self._add(node, f"{what} is {_shown(node)}: expected {expected}{hint}")
      return None
    if not node.value.strip():
      self._add(node, f"{what} is empty")
      return None
    # JSON escapes a character beyond U+FFFF as two surrogates, which YAML reads
    # one by one.
    text = node.value.encode("utf-16", "surrogatepass").decode(
      "utf-16", "surrogatepass"
    )
    if writing.printable(text) != text:
      self._add(
        node,
        f"{what} holds half of a surrogate pair, which is not text: write the"
        " character itself",
      )
      return None
    return text

  def _name(self, node: yaml.Node | None) -> str:
    name = self._text(node, "name") or ""
    if name and not (_NAME.fullmatch(name) and len(name) <= _MAX_NAME):
      self._add(
        node,
        f"name is {_short(name)}: {_NAME_EXPECTED}, since tasks and folders are"
        " called after it",
      )
    elif _OURS.fullmatch(name):
      self._add(
        node,
        f"name is {name!r}, as datasets and mixtures of ours are called: choose"
        f" another, such as my_{name}",
      )
    self._dataset_name = name
    return name

  def _vocabulary(self, node: yaml.Node | None) -> description.Vocabulary:
    extra_ids = 100
    file = node
    if isinstance(node, yaml.MappingNode):
      parts = self.mapping(
        node, "vocabulary", ("file", "extra_ids"), required=("file",)
      )
      file = parts.get("file")
      if "extra_ids" in parts:
        extra_ids = self._whole(
          parts["extra_ids"], "vocabulary.extra_ids", 0, _MAX_EXTRA_IDS
        )
    path = self._file(file, "vocabulary") or ""
    return description.Vocabulary(
      path=os.path.abspath(path), extra_ids=extra_ids
    )

  def _tfds_dir(self, node: yaml.Node | None) -> str:
    given = self._text(node, "tfds_dir") or _TFDS_DIR
    if paths.is_in_bucket(given):
      return given
    path = os.path.join(self._folder, given)
    if "://" in given or (os.path.exists(path) and not os.path.isdir(path)):
      self._add(node, f"tfds_dir is {given!r}: expected a folder or gs://...")
    return path

  def _file(self, node: yaml.Node | None, what: str) -> str | None:
    """Reads the name of a file, which must exist."""
    given = self._text(node, what, "the name of a file")
    if given is None:
      return None
    if "://" in given:
      self._add(
        node,
        f"{what} is {given!r}: expected a file on this machine, its path"
        " relative to the dataset file's folder; copy it there",
      )
      return None
    path = _as_written(os.path.normpath(os.path.join(self._folder, given)))
    if not os.path.isfile(path):
      hint = "; ~ and $ are read as they are" if given[0] in "~$" else ""
      self._add(node, f"{what} is {given!r}, and {path} is not a file{hint}")
      return None
    return path

  def _inside(
    self, node: yaml.Node | None, rule: answer_rules.AnswerRule
  ) -> _Member:
    parts = self.mapping(node, "sets", _SETS, required=("train", "test"))
    return _Member(name="", kind="", sets=self._files(parts, "sets"), rule=rule)

  def _members(
    self, kind: str, node: yaml.Node | None, rule: answer_rules.AnswerRule
  ) -> list[_Member]:
    members = []
    for name, value in self.mapping(node, kind).items():
      what = f"{kind}.{name[:_MAX_NAME]}"
      if name in (*_MIXTURES, self._dataset_name):
        self._add(
          value, f"{what}: the name {name!r} has a meaning of its own; choose"
          " another"
        )  # fmt: skip
      other = self._kinds.setdefault(name, kind)
      if other != kind:
        self._add(
          value,
          f"{what}: {other} has a set of this name, too, whose tasks would be"
          " called the same; choose another",
        )
      if not (_NAME.fullmatch(name) and len(name) <= _MAX_NAME):
        self._add(
          value,
          f"{what}: {_NAME_EXPECTED}",
        )
      own_rule = rule
      if isinstance(value, yaml.MappingNode):
        known = ("validation", "test", "answer", "demonstrations")
        parts = self.mapping(value, what, known)
        before = len(self._mistakes)
        if "answer" in parts:
          own_rule = self.rule(parts["answer"])
        is_rule_known = len(self._mistakes) == before
        if kind == "general" and "test" not in parts:
          self._add(value, f"{what} lacks 'test'")
        elif not {"validation", "test"} & parts.keys():
          self._add(value, f"{what} lacks 'validation' and 'test'")
        sets = self._files(parts, what)
        if not is_rule_known:
          sets = {}  # whose answers cannot be judged
      else:
        path = self._file(value, what)
        sets = {"": _Set(path=path, line=_line(value))} if path else {}
      members.append(_Member(name=name, kind=kind, sets=sets, rule=own_rule))
    return members

  def _files(
    self, parts: Mapping[str, yaml.Node], what: str
  ) -> dict[str, _Set]:
    sets = {}
    for key in _SETS:
      path = self._file(parts.get(key), f"{what}.{key}")
      if path is not None:
        sets[key] = _Set(path=path, line=_line(parts[key]))
    return sets

  def _teacher(self, node: yaml.Node | None) -> str | None:
    parts = self.mapping(node, "teacher", ("prompt", "prompt_file"))
    if "prompt" in parts and "prompt_file" in parts:
      self._add(node, "teacher has both 'prompt' and 'prompt_file': give one")
    if "prompt_file" in parts:
      path = self._file(parts["prompt_file"], "teacher.prompt_file")
      if path is None:
        return None
      try:
        text = reading.read_text(path)
      except errors.UserError as error:
        self._add(parts["prompt_file"], str(error))
        return None
      self._check_place(
        parts["prompt_file"], text, "teacher.prompt_file", formats.QUESTION
      )
      return text
    return self._template(
      parts.get("prompt"), "teacher.prompt", formats.QUESTION
    )

  def _template(
    self, node: yaml.Node | None, what: str, place: str
  ) -> str | None:
    text = self._text(node, what)
    if text is not None and self._check_place(node, text, what, place):
      return text
    return None

  def _check_place(
    self, node: yaml.Node, text: str, what: str, place: str
  ) -> bool:
    count = text.count(place)
    if count != 1:
      others = [] if count else [one[0] for one in _PLACE.finditer(text)]
      has = f" (it has {', '.join(others[:3])})"
      self._add(
        node,
        f"{what} has {place} {count} times{has if others else ''}: expected it"
        " exactly once",
      )
    elif place == formats.QUESTION:
      self._prompts[what] = (_line(node), text)
    if count == 1 and f"{{{place}}}" in text:
      self._add(
        node, f"{what} has {{{place}}}: expected {place}, in single braces"
      )
    return count == 1


def _json_answer(rule: answer_rules.AnswerRule) -> str:
  """Returns the template of an answer in JSON: {"result": {"label": ...}}."""
  if rule.fields:
    return formats.ANSWER  # which is an object
  parts = rule.field.split(".")
  before = "".join(f'{{"{part}": ' for part in parts)
  return f'{before}"{formats.ANSWER}"{"}" * len(parts)}'


def _as_written(path: str) -> str:
  """Returns a path as a user in the working directory would write it."""
  here = os.path.relpath(path)
  return path if here.startswith(os.pardir) else here


def _line(node: yaml.Node | None) -> int:
  return 0 if node is None else node.start_mark.line + 1


def _is_empty(node: yaml.Node) -> bool:
  return isinstance(node, yaml.ScalarNode) and not node.value


def _short(text: str) -> str:
  return repr(text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}...")


def _shown(node: yaml.Node) -> str:
  if isinstance(node, yaml.ScalarNode):
    return repr(node.value[:40]) if node.value else "empty"
  return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


class _Sets:
  """The rows of all sets, with their mistakes collected."""

  def __init__(self, parts: _Parts, mistakes: mistakes_lib.Mistakes) -> None:
    self._parts = parts
    self._mistakes = mistakes
    before = len(mistakes)
    self._rows = {}
    sets: dict[str, str] = {}  # the name of the set by its file
    shared = ("train", "demonstrations")
    for member in parts.members:
      for split, one in member.sets.items():
        key = (member.kind, member.name, split)
        name = ".".join(filter(None, key)) if member.kind else f"sets.{split}"
        first = sets.setdefault(os.path.realpath(one.path), name)
        is_shown = split == shared[1] and first.rpartition(".")[2] in shared
        if first != name and not is_shown:
          mistakes.add(
            parts.file, one.line, f"{name} is the file of {first}, too:"
            f" {one.path}",
          )  # fmt: skip
          self._rows[key] = []
        else:
          self._rows[key] = self._read(member, split, one)
    self._note_sizes()
    if self._rows.get(("", "", "train")):
      self._note_rule()
      if len(mistakes) == before:  # else rows are missing that are there
        self._note_demonstrations()
      if os.path.isfile(parts.vocabulary.path):
        self._note_spelling()
    rows_lib.note_leaks(self._roles(), mistakes)
    self._note_unfilled()

  def _read(self, member: _Member, split: str, one: _Set) -> list[rows_lib.Row]:
    named = ".".join(filter(None, (member.kind, member.name, split)))
    return rows_lib.read(
      one.path,
      prefix=f"{self._parts.name}/{named.replace('.', '/')}",
      rule=member.rule,
      wording=self._wording(member),
      mistakes=self._mistakes,
    )

  def _wording(self, member: _Member) -> formats.Wording:
    """Returns the wording to check a benchmark's rows with.

    A benchmark with an answer rule of its own states answers in the default
    words of that rule; its prompts are the dataset's.
    """
    if member.rule == self._parts.rule:
      return self._parts.wording
    if member.rule.kind != "json":
      return formats.Wording()
    return formats.Wording(
      answer=_json_answer(member.rule), answer_is_json=not member.rule.fields
    )

  def _note_sizes(self) -> None:
    """Notes files of which a part is held out, and that have too few rows."""
    for member in self._parts.members:
      key = "" if member.kind else "train"
      if member.kind == "general" or key not in member.sets:
        continue
      if not member.kind and "validation" in member.sets:
        continue
      rows = self._rows[member.kind, member.name, key]
      if rows and not self._split(member.kind, member.name, "validation"):
        self._mistakes.add(
          self._parts.file,
          member.sets[key].line,
          f"{member.sets[key].path} has {len(rows):,} questions, too few to"
          " hold some out for validation: give a file of its own as"
          " 'validation'",
        )

  def _note_demonstrations(self) -> None:
    """Notes a prompt that shows more solved questions than there are."""
    parts = self._parts
    for member in parts.members:
      for row in self._rows.get(
        (member.kind, member.name, "demonstrations"), ()
      ):
        if not row.question.rationale:
          self._mistakes.add(
            member.sets["demonstrations"].path,
            row.line,
            "lacks 'rationale': a solved question is shown with it",
            kind="no rationale",
          )
      if member.kind and "demonstrations" not in member.sets:
        continue  # it shows those of `sets`
      shown = self._shown(member)
      solved = questions.to_demonstrations(shown)
      # Without any, `prepare` keeps samples of the training questions.
      number = len({one.question.strip() for one in solved or shown})
      if number <= parts.num_demonstrations:
        named = f"{member.kind}.{member.name}" if member.kind else "sets"
        self._mistakes.add(
          parts.file,
          parts.demonstrations_line,
          f"student.demonstrations is {parts.num_demonstrations}: expected"
          f" fewer than the {number:,} solved questions of {named}, since no"
          " prompt may show the question that it asks",
        )

  def _note_rule(self) -> None:
    """Reports a rule that finds the same in every training answer."""
    rows = self._rows["", "", "train"]
    said = {row.question.answer for row in rows}
    if len(rows) > 1 and len(said) == 1:
      self._mistakes.add(
        self._parts.file,
        self._parts.answer_line,
        f"every training row has the answer {next(iter(said))[:40]!r}: there is"
        " nothing to learn",
      )

  def _note_unfilled(self) -> None:
    """Reports places in prompts that are called after a field of the rows."""
    parts, rows = self._parts, self._rows.get(("", "", "train"), ())
    fields = {name for row in rows for name in row.more_fields}
    for what, (line, text) in parts.prompts.items():
      unfilled = [one for one in _PLACE.findall(text) if one in fields]
      if unfilled:
        self._mistakes.add(
          parts.file,
          line,
          f"{what} has {{{unfilled[0]}}}, a field of the rows, and only"
          f" {formats.QUESTION} is filled in: write the whole text into each"
          " row's 'question'",
        )

  def _note_spelling(self) -> None:
    """Reports a vocabulary that cannot encode the answers or the questions."""
    path = self._parts.vocabulary.path
    try:
      processor = sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError):
      self._mistakes.add(
        self._parts.file,
        self._parts.vocabulary_line,
        f"vocabulary {_as_written(path)} is no SentencePiece model: give the"
        " student's own,"
        " such as T5's spiece.model",
      )
      return
    missing = [
      name
      for name, index in (
        ("padding", processor.pad_id()),
        ("end-of-sequence", processor.eos_id()),
      )
      if index < 0
    ]
    if missing:
      self._mistakes.add(
        self._parts.file,
        self._parts.vocabulary_line,
        f"vocabulary {_as_written(path)} has no {' and no '.join(missing)}"
        " token: train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1, as"
        " T5's",
      )
    rows = self._rows["", "", "train"][:_CHECKED_ROWS]
    rule, lost = self._parts.rule, []
    for row in rows:
      answer = row.question.answer
      stated = formats.render_answer(answer, self._parts.wording)
      written = processor.decode(processor.encode(stated))
      if not rule.finds(written, answer):
        lost.append((stated, written))
    if lost:
      stated, written = lost[0]
      self._mistakes.add(
        self._parts.file,
        self._parts.vocabulary_line,
        f"the vocabulary cannot write the answers of {len(lost):,} of"
        f" {len(rows):,} training rows: {stated[:60]!r} becomes"
        f" {written[:60]!r}; give a vocabulary with these characters (or byte"
        " fallback), or state answers without them (student.answer)",
      )
    tokens = [
      token
      for ids in processor.encode([row.question.question for row in rows])
      for token in ids
    ]
    unknown = tokens.count(processor.unk_id()) / max(1, len(tokens))
    if unknown > _MAX_UNKNOWN and not lost:
      self._mistakes.add(
        self._parts.file,
        self._parts.vocabulary_line,
        f"the vocabulary does not know {unknown:.0%} of the tokens of the"
        " training questions, which the student could not read: give one that"
        " was made from such texts (or has byte fallback)",
      )

  def _roles(self) -> dict[str, tuple[str, str, Sequence[rows_lib.Row]]]:
    roles = {}
    for member in self._parts.members:
      for split, one in member.sets.items():
        rows = self._rows[member.kind, member.name, split]
        name = ".".join(filter(None, (member.kind, member.name, split)))
        # One file is divided by its questions, and leaks into no other part. A
        # demonstration is read with its answer, as in training.
        role = {"": "test", "demonstrations": "train"}.get(split, split)
        roles[name] = (role, one.path, rows)
    return roles

  def file(self, path: str, content: bytes) -> DatasetFile:
    """Returns the dataset, its rows in memory."""
    parts = self._parts
    benchmarks = {
      (member.kind, member.name): self._benchmark(member)
      for member in parts.members
    }

    def of_kind(kind: str) -> tuple[description.Benchmark, ...]:
      return tuple(
        benchmark for key, benchmark in benchmarks.items() if key[0] == kind
      )

    held_out = [
      row.question
      for key, rows in self._rows.items()
      if key[2] not in ("train", "demonstrations")
      for row in rows
    ]
    validation = self._split("", "", "validation")
    held_out += validation
    asked = [row.question for row in self._rows["", "", "train"]]
    dataset = description.Dataset(
      name=parts.name,
      vocabulary=parts.vocabulary,
      in_distribution=of_kind("")[0],
      out_of_distribution=of_kind("out_of_distribution"),
      general=of_kind("general"),
      read_training=functools.partial(
        _training, asked, held_out, validation, path
      ),
      wording=parts.wording,
      num_demonstrations=parts.num_demonstrations,
      teacher_prompt=parts.teacher_prompt,
      tfds_dir=parts.tfds_dir,
    )
    kept = {rows_lib.same_words(one.question) for one in validation}
    train = [
      row
      for row in self._rows["", "", "train"]
      if rows_lib.same_words(row.question.question) not in kept
    ]
    sizes = {"train": len(train)}
    for member in parts.members:
      for split in benchmarks[member.kind, member.name].splits:
        named = ".".join(filter(None, (member.kind, member.name, split)))
        sizes[named] = len(self._split(member.kind, member.name, split))
    return DatasetFile(
      path=path, content=content, dataset=dataset, train=train, sizes=sizes
    )

  def _benchmark(self, member: _Member) -> description.Benchmark:
    parts = self._parts
    known = member.sets
    is_both = "" in known or (not member.kind and "validation" not in known)
    present = tuple(s for s in ("validation", "test") if s in known)
    rows = {
      split: self._split(member.kind, member.name, split)
      for split in (("validation", "test") if is_both else present)
    }
    name = f"{parts.name}_{member.name}" if member.name else parts.name
    return description.Benchmark(
      name=name,
      read=rows.__getitem__,
      splits=tuple(rows),
      answer=member.rule,
      read_demonstrations=functools.partial(
        _demonstrations, self._shown(member), parts
      ),
    )

  def _shown(self, member: _Member) -> list[questions.Question]:
    """Returns the questions that may be demonstrations of a benchmark."""
    for kind, name in ((member.kind, member.name), ("", "")):
      rows = self._rows.get((kind, name, "demonstrations"))
      if rows is not None:
        held_out = {
          rows_lib.same_words(one.question)
          for one in self._split("", "", "validation")
        }
        return [
          row.question
          for row in rows
          if rows_lib.same_words(row.question.question) not in held_out
        ]
    return self._split("", "", "train")

  def _split(
    self, kind: str, name: str, split: str
  ) -> list[questions.Question]:
    """Returns the questions of a split, which may be a part of one file."""
    given = self._rows.get((kind, name, split))
    if (kind, name) == ("", "") and split in ("train", "validation"):
      if ("", "", "validation") in self._rows:
        return [row.question for row in given or ()]
      asked = [row.question for row in self._rows["", "", "train"]]
      parted = splits.split_validation(asked, words_fn=rows_lib.same_words)
      return parted[0 if split == "validation" else 1]
    if given is not None:
      return [row.question for row in given]
    whole = [row.question for row in self._rows[kind, name, ""]]
    if kind == "general":  # no checkpoint is selected by it, as with BBH
      held_out, _ = splits.split_validation(whole, words_fn=rows_lib.same_words)
      return whole if split == "test" else held_out
    is_test = split == "test"
    return [
      question
      for question in whole
      if (rows_lib.same_words(question.question) in self._tested) == is_test
    ]

  @functools.cached_property
  def _tested(self) -> frozenset[str]:
    """The questions of all test splits but general ones, as `same_words`.

    Benchmarks of one file each can share questions, and their parts are of
    unlike sizes: a question that one of them tests, all of them test, else a
    checkpoint would be selected by it.
    """
    tested: set[str] = set()
    for (kind, _, split), rows in self._rows.items():
      if kind == "general" or split not in ("", "test"):
        continue
      asked = [row.question for row in rows]
      if not split:
        _, asked = splits.split_validation(asked, words_fn=rows_lib.same_words)
      tested.update(rows_lib.same_words(one.question) for one in asked)
    return frozenset(tested)


def _training(
  asked: Sequence[questions.Question],
  held_out: Sequence[questions.Question],
  validation: Sequence[questions.Question],
  path: str,
  given: str | None,
) -> record_filter.TrainingQuestions:
  if given is not None:
    raise errors.UserError(
      f"--questions={given} and --dataset={path} both name the training"
      " questions: leave --questions out"
    )
  return record_filter.TrainingQuestions(
    asked=asked,
    held_out=held_out,
    validation=validation,
    words_fn=rows_lib.same_words,
  )


def _demonstrations(
  shown: Sequence[questions.Question], parts: _Parts
) -> list[formats.Demonstration]:
  """Returns questions with rationales, or the samples that `prepare` kept.

  Raises:
    UserError: there are neither.
  """
  found = questions.to_demonstrations(shown)
  if found:
    return found
  folder = epath.Path(sources.tfds_dir(parts.tfds_dir))
  kept = folder / f"{parts.name}_teacher" / questions.DEMONSTRATIONS
  if kept.is_file():
    return questions.to_demonstrations(questions.read_questions(str(kept)))
  raise errors.UserError(
    f"{parts.file}: in-context prompts show solved questions, and no training"
    " row has a 'rationale': run `specialize prepare`, which keeps some of the"
    " teacher's right samples to show, or name a file under sets.demonstrations"
  )
