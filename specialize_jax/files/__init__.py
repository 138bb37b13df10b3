r"""Where files are found, read and written: one rule for each.

`paths` checks a path that a user gave, at a command's edge and before any
work; `reading` reads text and JSON; `writing` writes them, whole or not at
all. A path is local or in a bucket (`gs://bucket/...`), and the same functions
take both.

  >>> import tempfile
  >>> from specialize_jax.files import paths, reading, writing
  >>> folder = tempfile.mkdtemp()
  >>> paths.check("--output", f"{folder}/rows.jsonl", paths.OUTPUT_FILE)
  >>> writing.write_rows(f"{folder}/rows.jsonl", [{"text": "half: \ud83d"}])
  >>> paths.check("--inputs", f"{folder}/rows.jsonl", paths.INPUT_FILE)
  >>> reading.read_rows(f"{folder}/rows.jsonl")
  [{'text': 'half: \ud83d'}]
"""
