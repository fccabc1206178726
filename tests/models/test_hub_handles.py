import gc
import hashlib
import io
import tarfile
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from finetune.errors import FinetuneError
from finetune.models.hub_handles import cache_folder, resolve_handle

# tensorflow-hub leaves the responses of failed requests open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    gc.collect()


@pytest.fixture
def folder(tmp_path):
    """What looks like a SavedModel: finding one does not open it."""
    (tmp_path / "encoder" / "variables").mkdir(parents=True)
    (tmp_path / "encoder" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "encoder" / "variables" / "variables.index").write_bytes(b"index")
    return tmp_path / "encoder"


def archive_of(folder, path, inside="."):
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, arcname=inside)
    return path


def problem(handle):
    with pytest.raises(FinetuneError) as error:
        resolve_handle(handle)
    assert "\n" not in str(error.value)
    return str(error.value)


class Hub(BaseHTTPRequestHandler):
    """Serves archives as TensorFlow Hub does: the compressed module at its own address, on request."""

    def do_GET(self):
        address = urlsplit(self.path)
        self.server.asked.append(self.path)
        data = self.server.archives.get(address.path)
        if data is None or parse_qs(address.query).get("tf-hub-format") != ["compressed"]:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.archives, server.asked = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server, name="/google/encoder/1"):
    return f"http://127.0.0.1:{server.server_port}{name}"


# -- Local ------------------------------------------------------------------------------------------------------------


def test_a_local_folder_is_itself_also_as_a_file_address(folder):
    assert resolve_handle(folder) == resolve_handle(str(folder)) == resolve_handle(folder.as_uri()) == str(folder)


@pytest.mark.parametrize("inside", [".", "encoder_1", "a/b"])
def test_an_archive_is_unpacked_into_the_cache_once_wherever_in_it_the_module_is(folder, tmp_path, own_cache, inside):
    archive = archive_of(folder, tmp_path / "encoder.tar.gz", inside)
    found = Path(resolve_handle(archive))
    assert (found / "saved_model.pb").read_bytes() == b"graph"
    assert own_cache in found.parents
    before = (found / "saved_model.pb").stat().st_mtime_ns
    assert resolve_handle(archive.as_uri()) == str(found)
    assert (found / "saved_model.pb").stat().st_mtime_ns == before


def test_what_is_missing_is_refused_with_the_nearest_or_what_is_there(folder, tmp_path):
    assert problem(tmp_path / "encodr").endswith("does not exist. Did you mean `encoder`?")
    assert problem(tmp_path / "zzz").endswith("does not exist. In the same folder: `encoder`.")
    assert problem(tmp_path / "no" / "where").endswith(f"does not exist. There is no folder `{tmp_path / 'no'}`.")


def test_a_folder_without_a_saved_model_is_refused_with_what_it_holds(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    said = problem(tmp_path / "empty")
    assert said.startswith("A SavedModel is a folder that contains `saved_model.pb`.")
    assert "It contains nothing. Save the model with" in said
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    for name in "ab":
        (tmp_path / "two" / name / "saved_model.pb").touch()
    assert problem(tmp_path / "two").endswith("It has several below it: `a`, `b`. Give one of them.")


def test_other_files_are_refused_with_where_they_belong(folder, tmp_path):
    (tmp_path / "model.keras").touch()
    assert problem(tmp_path / "model.keras").endswith("`keras.models.load_model` in Python.")
    assert problem(folder / "saved_model.pb").endswith(f"Give its folder, `{folder}`.")
    assert "begins with `ftp://`. Addresses begin with `file://`, `http://`" in problem("ftp://example.org/encoder")


# -- Remote -----------------------------------------------------------------------------------------------------------


def test_a_handle_is_fetched_compressed_by_tensorflow_hub_once(hub, folder, tmp_path, own_cache):
    hub.archives["/google/encoder/1"] = archive_of(folder, tmp_path / "x.tar.gz").read_bytes()
    found = Path(resolve_handle(address(hub)))
    assert (found / "variables" / "variables.index").read_bytes() == b"index"
    assert found == own_cache / hashlib.sha1(address(hub).encode()).hexdigest()
    assert resolve_handle(address(hub)) == str(found)
    assert hub.asked == ["/google/encoder/1?tf-hub-format=compressed"]


def test_what_is_in_the_cache_needs_no_network(hub, folder, tmp_path):
    hub.archives["/google/encoder/1"] = archive_of(folder, tmp_path / "x.tar.gz").read_bytes()
    handle = address(hub)
    found = resolve_handle(handle)
    hub.shutdown()
    hub.server_close()
    assert resolve_handle(handle) == found


def test_without_a_network_there_is_one_short_error_with_a_way_out():
    said = problem("http://127.0.0.1:1/google/encoder/1")
    assert said.startswith(
        "A TensorFlow Hub module is downloaded once. `http://127.0.0.1:1/google/encoder/1` cannot be downloaded: "
    )
    assert "Connection refused" in said
    assert "give the local folder or `.tar.gz` file" in said


def test_an_address_that_the_server_does_not_know_is_refused(hub):
    assert "404" in problem(address(hub, "/google/encodr/1"))


def test_a_download_that_is_no_archive_leaves_nothing_behind(hub, own_cache):
    hub.archives["/google/encoder/1"] = b"<html>sign in</html>"
    assert "does not appear to be a valid module" in problem(address(hub))
    assert not (own_cache / hashlib.sha1(address(hub).encode()).hexdigest()).exists()


def test_a_download_with_paths_that_lead_out_of_it_writes_nothing_there(hub, tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as file:
        info = tarfile.TarInfo("../../escaped")
        info.size = 3
        file.addfile(info, io.BytesIO(b"out"))
    hub.archives["/google/encoder/1"] = data.getvalue()
    problem(address(hub))
    assert not list(tmp_path.rglob("escaped"))


def test_without_a_setting_the_cache_is_a_temporary_folder_of_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("TFHUB_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = cache_folder()
    assert (made.parent, made.stat().st_mode & 0o777) == (tmp_path, 0o700)
    made.chmod(0o777)
    with pytest.raises(FinetuneError, match="can be written to by others"):
        cache_folder()
