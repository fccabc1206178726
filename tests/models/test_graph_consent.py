import pytest
import tensorflow as tf

from finetune.errors import FinetuneError
from finetune.models.graph_consent import require_consent, require_operations


class Copying(tf.Module):
    """Copies a file whenever it computes."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.ones((4, 3)), name="w")

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
    def __call__(self, x):
        tf.io.write_file("copy", tf.io.read_file("secret"))
        return tf.matmul(x, self.w)


@pytest.fixture
def copying(tmp_path):
    tf.saved_model.save(Copying(), tmp_path / "net")
    return tmp_path / "net"


def refused(handle, *allowed, written=None):
    with pytest.raises(FinetuneError) as caught:
        require_consent(handle, allowed, written=written)
    return str(caught.value)


def test_a_graph_is_refused_with_what_it_contains_and_the_option_to_write(encoder_folder):
    message = refused(encoder_folder)
    assert message.startswith(
        f"The graph of a SavedModel is code, which runs with your rights. That of `{encoder_folder}`"
    )
    assert "more kinds; reach outside of it: none." in message
    assert message.endswith(f"If you trust it, add `--allow-code hub:{encoder_folder}`.")
    require_consent(encoder_folder, [f"hub:{encoder_folder}"])


def test_consent_for_another_graph_or_a_package_does_not_count(encoder_folder):
    refused(
        encoder_folder, "hub:other", "hub", "hub:", str(encoder_folder), f"hub:{encoder_folder.parent}", "op:ReadFile"
    )


def test_operations_that_reach_outside_are_named_one_by_one(copying):
    options = "--allow-code hub:net --allow-code op:ReadFile --allow-code op:WriteFile`."
    for allowed in ([], ["hub:net"], ["hub:net", "op:ReadFile"], ["op:ReadFile", "op:WriteFile"]):
        message = refused(copying, *allowed, written="net")
        assert "reach outside of it: ReadFile (files), WriteFile (files). If you trust it" in message
        assert message.endswith(options)
    require_consent(copying, ["hub:net", "op:ReadFile", "op:WriteFile"], written="net")
    assert not (copying.parent / "copy").exists()


def test_nothing_is_downloaded_before_it_is_allowed(monkeypatch):
    import tensorflow_hub as hub

    monkeypatch.setattr(hub, "resolve", lambda handle: pytest.fail("downloaded"))
    message = refused("https://example.org/a b/1")
    assert "`https://example.org/a b/1` is not downloaded before you allow it." in message
    assert "add `--allow-code 'hub:https://example.org/a b/1'`" in message


def test_in_python_the_operations_that_reach_outside_are_named_too(copying):
    with pytest.raises(FinetuneError, match=r"also reaches outside of it, by `ReadFile \(files\)`.*=\['ReadFile'\]`"):
        require_operations(str(copying), "net", ["WriteFile"])
    require_operations(str(copying), "net", ["WriteFile", "ReadFile"])
