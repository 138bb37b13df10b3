"""A bucket on this machine, for clients that only know Google's address.

TensorFlow's client of Google Cloud Storage has no setting for another address,
but it honors `https_proxy` and `CURL_CA_BUNDLE`. So this is a proxy that
answers for `*.googleapis.com` itself, with a certificate of its own, and passes
each request to gcp-storage-emulator: the clients are the real ones.
"""

import contextlib
import functools
import http.server
import io
import logging
import os
import pathlib
import ssl
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator

NAME = "bucket"


@contextlib.contextmanager
def running() -> Iterator[dict[str, str]]:
  """Serves an empty bucket, `gs://bucket`.

  Yields:
    The environment that brings a process's clients here.
  """
  import trustme
  from gcp_storage_emulator import exceptions
  from gcp_storage_emulator import server as emulator
  from gcp_storage_emulator import storage as storage_lib
  from gcp_storage_emulator.handlers import buckets, objects

  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  # An empty upload, as a directory's marker is, has no body to it.
  read_data = emulator._read_data

  def read_some_data(*request: object) -> object:
    found = read_data(*request)
    return b"" if found is None else found

  emulator._read_data = read_some_data
  # TensorStore holds what it read by the generation in the answer's header.
  download = objects.download

  def download_with_generation(
    request: object, response: object, storage: object
  ) -> None:
    download(request, response, storage)
    found = request.params["bucket_name"], request.params["object_id"]
    with contextlib.suppress(exceptions.NotFound):
      generation = storage.get_file_obj(*found)["generation"]
      response["x-goog-generation"] = generation

  objects.download = download_with_generation
  storage = storage_lib.Storage(use_memory_fs=True)
  buckets.create_bucket(NAME, storage)
  authority = trustme.CA()
  certificate = authority.issue_cert(
    "www.googleapis.com", "storage.googleapis.com", "oauth2.googleapis.com"
  )
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  certificate.configure_cert(context)
  lock = threading.Lock()

  class Handler(emulator.RequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer is two packets, its headers and its body: with Nagle's algorithm
    # the second waits for the client's delayed acknowledgement of the first.
    disable_nagle_algorithm = True

    def do_CONNECT(self) -> None:  # noqa: N802
      self.send_response(200)
      self.end_headers()
      self.wfile.flush()
      self.request = context.wrap_socket(self.request, server_side=True)
      self.setup()

    def parse_request(self) -> bool:
      whole = super().parse_request()
      if whole:
        self.path = _with_prefix(self.path)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
          body = _whole_body(self.rfile)
          del self.headers["Transfer-Encoding"], self.headers["Content-Length"]
          self.headers["Content-Length"] = str(len(body))
          self.rfile = _Then(body, self.rfile)
      return whole

    def __getattribute__(self, name: str) -> object:
      found = super().__getattribute__(name)
      if name.startswith("do_") and name != "do_CONNECT":
        return functools.partial(_locked, lock, found)
      return found

  httpd = http.server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(Handler, storage)
  )
  httpd.daemon_threads = True
  thread = threading.Thread(target=httpd.serve_forever, daemon=True)
  thread.start()
  address = f"http://127.0.0.1:{httpd.server_port}"
  with tempfile.TemporaryDirectory() as folder:
    bundle = pathlib.Path(folder, "authority.pem")
    authority.cert_pem.write_to_path(bundle)
    try:
      yield {
        "https_proxy": address,
        "http_proxy": address,
        "CURL_CA_BUNDLE": os.fspath(bundle),
        "TENSORSTORE_CA_BUNDLE": os.fspath(bundle),
        "SSL_CERT_FILE": os.fspath(bundle),
        "NO_GCE_CHECK": "true",
        # Google's own Python client, which Orbax asks what kind of bucket it
        # is, does have a setting.
        "STORAGE_EMULATOR_HOST": address,
        "GOOGLE_CLOUD_PROJECT": "project",
      }
    finally:
      emulator._read_data = read_data
      objects.download = download
      httpd.shutdown()
      httpd.server_close()


class _Then:
  """A stream with some bytes put back before it."""

  def __init__(self, held: bytes, rest: io.BufferedIOBase) -> None:
    self._held, self._rest = io.BytesIO(held), rest

  def read(self, size: int = -1) -> bytes:
    return self._held.read(size) or self._rest.read(size)

  def readline(self, size: int = -1) -> bytes:
    return self._held.readline(size) or self._rest.readline(size)

  def close(self) -> None:
    self._rest.close()

  @property
  def closed(self) -> bool:
    return self._rest.closed


def _whole_body(stream: io.BufferedIOBase) -> bytes:
  """Joins the chunks of a request, which the emulator keeps as they come."""
  body = b""
  while size := int(stream.readline().split(b";")[0], 16):
    body += stream.read(size)
    stream.readline()
  stream.readline()
  return body


def _with_prefix(path: str) -> str:
  """Rewrites a listing between two names, which the emulator does not know."""
  if path.startswith("http://"):
    path = "/" + path.split("/", 3)[3]
  url = urllib.parse.urlsplit(path)
  query = dict(urllib.parse.parse_qsl(url.query))
  start, end = query.pop("startOffset", ""), query.pop("endOffset", "")
  if not start:
    return path
  assert end == start[:-1] + chr(ord(start[-1]) + 1), (start, end)
  query["prefix"] = start
  return url._replace(query=urllib.parse.urlencode(query)).geturl()


def _locked(lock: threading.Lock, handle: object) -> None:
  with lock:
    handle()
