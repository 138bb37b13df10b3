r"""Paths, text files and JSON, on local disks and in buckets.

`paths` checks the paths of a command's flags before any work; `reading` reads
text and JSON; `writing` writes them atomically; `locks` allows one writer at a
time. All functions take local paths and those in a bucket (`gs://bucket/...`).

  >>> import tempfile
  >>> from specialize_jax.files import paths, reading, writing
  >>> folder = tempfile.mkdtemp()
  >>> paths.check("--output", f"{folder}/rows.jsonl", paths.OUTPUT_FILE)
  >>> writing.write_rows(f"{folder}/rows.jsonl", [{"text": "half: \ud83d"}])
  >>> paths.check("--inputs", f"{folder}/rows.jsonl", paths.INPUT_FILE)
  >>> reading.read_rows(f"{folder}/rows.jsonl")
  [{'text': 'half: \ud83d'}]
"""
