"""Builds tables, figures and pages from the files that a run has written.

Example:
  from specialize_jax.reports import page

  page.build("demo_output", "report.html")
"""
