"""The one definition of what is stored on disk, its reader and its writer.

Teacher records are raw and kept forever, since a retired teacher cannot be
asked again; aligned rows are derived from them and rebuilt at will. A reader
of this room never returns a record that it could not read whole.
"""
