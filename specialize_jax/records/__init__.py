"""The file formats of teacher records and aligned rows, with reader and writer.

Teacher records are raw and kept forever, because a retired teacher cannot be
sampled again. Aligned rows are derived from them and can be rebuilt. Readers
never return incomplete records.

Example:
  from specialize_jax.records import store

  for record in store.read_records("records"):
    print(record.question_id, record.text)
"""
