"""A teacher's rationales as records: sampled from an endpoint, or imported.

What a server returns is checked before it is believed, graded on arrival, and
counted only when it is on disk; a run that is stopped at any moment goes on
where it was, and asks for no sample that it has.
"""
