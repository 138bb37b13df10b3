"""Samples a teacher's rationales from an endpoint, or imports them.

A server's responses are validated and graded when they arrive, and counted when
they are on disk. A run that is interrupted at any moment can be resumed, and
does not request samples that are already stored.
"""
