"""The architecture is the import graph: floors and no cycles.

The floors are those of the table in README.md. A room imports only rooms on
lower floors, never its own floor, so that each can be read, tested and
replaced knowing only what lies below it.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FLOORS = {
  "files": 0,
  "terminal": 0,
  "parallel": 0,
  "cot": 1,
  "align": 1,
  "records": 1,
  "losses": 1,
  "teacher": 2,
  "data": 2,
  "t5": 2,
  "mini": 2,
  "checkpoints": 3,
  "decoding": 3,
  "training": 4,
  "evaluation": 4,
  "datasets": 5,
  "tpu": 5,
  "reports": 5,
  "runs": 5,
  "t5x_bridge": 5,
  "study": 6,
  "cli": 7,
  "__main__": 8,
}
# The ground below floor 0: what every room may import.
GROUND = {
  "specialize_jax",
  "specialize_jax.errors",
  "specialize_jax.revision",
}


def _files(*tops):
  for top in tops:
    yield from sorted((ROOT / top).rglob("*.py"))


def _module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _exists(module):
  path = ROOT / pathlib.Path(*module.split("."))
  return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _imports(path):
  """The project's own modules that a file imports, wherever in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      if name.split(".")[0] in ("specialize_jax", "tasks", "gin", "tests"):
        yield name


def _room(module):
  parts = module.split(".")
  return parts[1] if parts[0] == "specialize_jax" and len(parts) > 1 else None


def _grounded(name):
  """Whether `from MODULE import THING` takes a thing of the ground."""
  return name.rsplit(".", 1)[0] in GROUND


def _package_files():
  return [pytest.param(p, id=_module_name(p)) for p in _files("specialize_jax")]


@pytest.mark.parametrize("path", _package_files())
def test_a_room_imports_only_rooms_on_lower_floors(path):
  room = _room(_module_name(path))
  if room is None or _module_name(path) in GROUND:
    return
  assert room in FLOORS, f"{room} has no floor: give it one"
  for name in _imports(path):
    top = name.split(".")[0]
    # In an installation `tasks/` lies in the package, where it is a link.
    if name.startswith("specialize_jax.tasks"):
      top = "tasks"
    if top == "gin":
      assert room == "cli", f"{path}: only cli/ imports gin"
      continue
    if top == "tasks":
      assert room == "cli", f"{path}: the library does not import tasks/"
      continue
    other = _room(name)
    if name in GROUND or (other not in FLOORS and _grounded(name)):
      continue
    if other == room:
      continue  # modules of one room know each other; cycles are caught below
    assert FLOORS[other] < FLOORS[room], (
      f"{path}: {room} (floor {FLOORS[room]}) imports {name} "
      f"(floor {FLOORS[other]})"
    )


def test_tasks_import_the_package_but_no_command():
  for path in _files("tasks"):
    for name in _imports(path):
      assert _room(name) != "cli", f"{path} imports {name}"
      assert name.split(".")[0] in ("specialize_jax", "tasks"), path


def test_there_is_no_import_cycle():
  graph = {}
  for path in _files("specialize_jax", "tasks"):
    targets = set()
    for name in _imports(path):
      # `from package import module` names the module; `from module import
      # thing` names a thing in it.
      target = name if _exists(name) else name.rsplit(".", 1)[0]
      targets.add(target)
    graph[_module_name(path)] = targets - {_module_name(path)}

  done, path = set(), []

  def visit(module):
    if module in done or module not in graph:
      return
    assert module not in path, f"cycle: {' -> '.join([*path, module])}"
    path.append(module)
    for target in sorted(graph[module]):
      visit(target)
    path.pop()
    done.add(module)

  for module in sorted(graph):
    visit(module)


def test_every_room_has_a_docstring():
  for path in _files("specialize_jax"):
    if path.name == "__init__.py":
      tree = ast.parse(path.read_text())
      assert ast.get_docstring(tree), f"{path} has no docstring"


def test_no_room_of_leftovers():
  names = {p.stem for p in _files("specialize_jax", "tasks")}
  assert not names & {"utils", "common", "misc", "helpers"}
