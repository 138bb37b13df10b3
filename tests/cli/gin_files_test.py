"""Gin files and overrides mean what a T5X user expects of them."""

import argparse
import dataclasses
import errno

import gin
import pytest

from specialize_jax import errors
from specialize_jax.cli import gin_files, main
from specialize_jax.files import paths
from specialize_jax.t5 import config as t5_config

_MODEL = """
from __gin__ import dynamic_registration
from specialize_jax.t5 import config

WIDTH = %gin.REQUIRED
DEPTH = 2

config.T5Config:
  vocab_size = 64
  embed_dim = %WIDTH
  mlp_dim = 32
  num_heads = 2
  head_dim = 8
  num_encoder_layers = %DEPTH
  num_decoder_layers = %DEPTH
  mlp_activations = ("relu",)
  tied_head = True
"""


@pytest.fixture
def model_file(tmp_path):
  path = tmp_path / "model.gin"
  path.write_text(_MODEL)
  return path


def load(*argv):
  parser = argparse.ArgumentParser()
  gin_files.add_flags(parser, default_file="runs/train.gin")
  flags, bindings = gin_files.parse(parser, argv)
  with gin_files.loaded(flags, bindings) as text:
    return gin_files.configured(t5_config.T5Config)(), text


def test_a_file_that_is_misspelt_is_one_sentence_with_what_was_meant():
  with pytest.raises(errors.UserError, match="did you mean models/flan_t5_xl"):
    load("--gin_file=models/flan_t5_xl_.gin")


def test_help_names_the_file_that_does_not_parse(tmp_path):
  path = tmp_path / "broken.gin"
  path.write_text("A = [1,\n")
  with pytest.raises(errors.UserError, match="broken.gin cannot be listed"):
    load(f"--gin_file={path}", "--help")
  with pytest.raises(errors.UserError, match="broken.gin. does not load"):
    load(f"--gin_file={path}")


def test_an_override_wins_over_the_file(model_file):
  config, text = load(
    f"--gin_file={model_file}", "--gin.WIDTH=16", "--gin.DEPTH=3"
  )
  assert (config.embed_dim, config.num_decoder_layers) == (16, 3)
  assert "DEPTH = 3" in text


def test_a_parameter_can_be_overridden_like_a_macro(model_file):
  config, _ = load(
    f"--gin_file={model_file}", "--gin.WIDTH=16", "--gin.T5Config.mlp_dim=48"
  )
  assert config.mlp_dim == 48


@pytest.mark.parametrize("value", ["bfloat16", "'bfloat16'", '"bfloat16"'])
def test_text_needs_no_quotes_and_may_have_them(model_file, value):
  config, _ = load(
    f"--gin_file={model_file}",
    "--gin.WIDTH=16",
    f"--gin.T5Config.dtype={value}",
  )
  assert config.dtype == "bfloat16"


def test_a_value_is_data_never_gin_code(model_file):
  hostile = "16\nimport os"
  with pytest.raises(errors.UserError, match="embed_dim"):
    load(f"--gin_file={model_file}", f"--gin.WIDTH={hostile}")


def test_a_misspelt_macro_is_an_error_that_names_the_near_one(model_file):
  with pytest.raises(errors.UserError, match="--gin.DEPHT.*DEPTH"):
    load(f"--gin_file={model_file}", "--gin.WIDTH=16", "--gin.DEPHT=3")


def test_a_required_macro_that_is_unbound_is_named(model_file):
  with pytest.raises(errors.UserError, match="the run needs WIDTH"):
    load(f"--gin_file={model_file}")


def test_an_unknown_parameter_is_an_error(model_file):
  with pytest.raises(errors.UserError, match="no_such"):
    load(
      f"--gin_file={model_file}", "--gin.WIDTH=16", "--gin.T5Config.no_such=1"
    )


def test_a_file_that_is_not_there_is_an_error():
  with pytest.raises(errors.UserError, match="no_such_file.gin"):
    load("--gin_file=no_such_file.gin")


def test_installed_files_are_found_by_name():
  config, _ = load("--gin_file=models/flan_t5_xl.gin")
  assert config.embed_dim == 2048


def test_a_file_in_the_search_path_wins_over_the_installed_one(
  tmp_path, model_file
):
  (tmp_path / "models").mkdir()
  model_file.rename(tmp_path / "models" / "flan_t5_xl.gin")
  config, _ = load(
    "--gin_file=models/flan_t5_xl.gin",
    f"--gin_search_paths={tmp_path}",
    "--gin.WIDTH=16",
  )
  assert config.embed_dim == 16


def test_gin_is_clear_after_use(model_file):
  load(f"--gin_file={model_file}", "--gin.WIDTH=16")
  with pytest.raises(errors.UserError, match="WIDTH"):
    load(f"--gin_file={model_file}")
  assert dataclasses.is_dataclass(t5_config.T5Config)


@pytest.fixture
def strangers_folder(tmp_path, monkeypatch):
  """A working directory with a file that has the name of one of ours."""
  folder = tmp_path / "models"
  folder.mkdir()
  (folder / "mini.gin").write_text(_MODEL + "WIDTH = 2\nDEPTH = 7\n")
  monkeypatch.chdir(tmp_path)
  gin_files._tell_shadowed.cache_clear()


@pytest.mark.usefixtures("strangers_folder")
def test_a_name_that_we_ship_is_ours_in_any_folder(capsys):
  config, _ = load("--gin_file=models/mini.gin")
  assert config.num_decoder_layers != 7
  said = capsys.readouterr().err
  assert "models/mini.gin is the package's file" in said
  assert "./models/mini.gin" in said


@pytest.mark.usefixtures("strangers_folder")
@pytest.mark.parametrize("dots", ["./", "../{}/", "{}/"])
def test_a_path_is_the_working_directorys(dots, tmp_path, capsys):
  name = dots.format(tmp_path if dots == "{}/" else tmp_path.name)
  config, _ = load(f"--gin_file={name}models/mini.gin")
  assert config.num_decoder_layers == 7
  assert not capsys.readouterr().err


@pytest.mark.usefixtures("strangers_folder")
def test_a_search_path_comes_before_our_names():
  config, _ = load("--gin_file=models/mini.gin", "--gin_search_paths=.")
  assert config.num_decoder_layers == 7


def test_a_model_that_lacks_a_field_is_one_sentence(tmp_path, capsys):
  file = tmp_path / "model.gin"
  file.write_text(
    "from __gin__ import dynamic_registration\n"
    "from specialize_jax.t5 import config\n"
    "config.T5Config.vocab_size = 128\n"
  )
  status = main.run(
    "plan", [f"--model={file}", "--topology=v5e:2x2", "--mesh=fsdp=4"]
  )
  assert status == 2
  said = capsys.readouterr().err
  assert "the gin files bind no 'embed_dim', 'mlp_dim'," in said
  assert "--gin.T5Config.NAME=value" in said


def test_a_module_that_is_not_imported_is_one_sentence(tmp_path):
  path = tmp_path / "user.gin"
  path.write_text(
    "from __gin__ import dynamic_registration\nconfig.T5Config.embed_dim = 8\n"
  )
  message = "'config' was not provided by an import statement"
  with pytest.raises(errors.UserError, match=message):
    load(f"--gin_file={path}")


def test_an_error_of_the_disk_keeps_its_number_and_file():
  """By which it is one sentence; gin raises a copy without them."""

  @gin.configurable(module="tests")
  def writes_to(path):
    with open(path, "w") as stream:
      stream.write("more than there is room for")

  for path, number in (("/dev/full", errno.ENOSPC), ("/proc", errno.EISDIR)):
    with pytest.raises(OSError, match="Errno") as raised:
      gin_files.configured(writes_to)(path=path)
    assert raised.value.errno == number
    assert paths.is_mendable(raised.value)


def test_a_macro_that_nothing_reads_is_told(model_file, capsys):
  model_file.write_text(f"{_MODEL}\nDEPHT = 3\nLABEL = 'mine'\n")
  config, _ = load(f"--gin_file={model_file}", "--gin.WIDTH=16")
  assert config.num_encoder_layers == 2
  warnings = capsys.readouterr().err.splitlines()
  assert len(warnings) == 2
  assert "sets DEPHT, which nothing reads; did you mean DEPTH" in warnings[0]
  assert warnings[1].endswith("sets LABEL, which nothing reads")


def test_no_packaged_file_tells_of_its_macros(capsys):
  load("--gin_file=models/flan_t5_xl.gin")
  assert not capsys.readouterr().err


def test_a_scope_that_nothing_is_called_in_is_refused(model_file):
  argv = (f"--gin_file={model_file}", "--gin.WIDTH=16")
  with pytest.raises(errors.UserError, match="scope 'train'.*--gin.T5Config.m"):
    load(*argv, "--gin.train/T5Config.mlp_dim=64")


def test_a_scope_of_the_command_line_s_own_is_taken():
  parser = argparse.ArgumentParser()
  gin_files.add_flags(parser, default_file="runs/train.gin")
  flags, bindings = gin_files.parse(
    parser,
    [
      "--gin_file=experiments/mini/specialize.gin",
      "--gin.MODEL_DIR=m",
      "--gin.INITIAL_CHECKPOINT_PATH=i",
      "--gin.EVALUATIONS=[@mine/experiment.Evaluation()]",
      "--gin.mine/experiment.Evaluation.mixture_or_task_name=t",
    ],
  )
  with gin_files.loaded(flags, bindings) as text:
    assert "mine/experiment.Evaluation.mixture_or_task_name = 't'" in text


def test_a_macro_in_its_own_value_is_one_sentence(model_file):
  argv = (f"--gin_file={model_file}", "--gin.WIDTH=%DEPTH")
  with pytest.raises(errors.UserError, match="DEPTH contains %DEPTH itself"):
    load(*argv, "--gin.DEPTH=%WIDTH")


def test_a_file_that_hides_the_one_it_includes_is_one_sentence(tmp_path):
  (tmp_path / "models").mkdir()
  (tmp_path / "models" / "t5_large.gin").write_text(
    'include "models/t5_large.gin"\n'
  )
  with pytest.raises(errors.UserError, match="includes itself"):
    load("--gin_file=models/t5_large.gin", f"--gin_search_paths={tmp_path}")


@pytest.mark.parametrize("saved", [True, False])
def test_a_resumed_run_needs_its_initial_checkpoint_no_more(tmp_path, saved):
  if saved:
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
  parser = argparse.ArgumentParser()
  gin_files.add_flags(parser, default_file="runs/train.gin")
  flags, bindings = gin_files.parse(
    parser,
    [
      "--gin_file=experiments/mini/specialize.gin",
      f"--gin.MODEL_DIR={tmp_path}/run",
      f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path}/gone/flan_t5_xl",
    ],
  )
  with gin_files.loaded(flags, bindings):
    if saved:
      gin_files.check_paths()
    else:
      with pytest.raises(errors.UserError, match="INITIAL_CHECKPOINT_PATH"):
        gin_files.check_paths()
