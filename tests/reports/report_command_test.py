"""`specialize report` on a finished demo's directory."""

from specialize_jax.cli import main


def test_the_page_the_figures_and_the_table_are_written(
  results_dir, tmp_path, capsys
):
  figures = tmp_path / "figures"
  flags = [f"--results_dir={results_dir}", f"--figures_dir={figures}"]
  assert main.run("report", flags) == 0
  out = capsys.readouterr().out
  assert "mini SVAMP" in out
  assert f"report: {results_dir / 'report.html'}" in out
  assert (results_dir / "report.html").exists()
  names = ("accuracy", "alignment", "coverage", "formats", "general", "price")
  names += ("selection", "training")
  assert sorted(path.name for path in figures.iterdir()) == sorted(
    ["table.md"] + [f"{n}.{kind}" for n in names for kind in ("png", "svg")]
  )


def test_an_empty_directory_is_one_sentence(tmp_path, capsys):
  assert main.run("report", [f"--results_dir={tmp_path}"]) == 2
  assert "holds no results" in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []
