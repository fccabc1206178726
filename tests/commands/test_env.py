"""Versions, machine, devices and settings."""

from finetune import __version__
from finetune.commands.env import environment, environment_text


def test_versions_machine_devices_and_settings_are_there_and_nothing_that_names_somebody(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": "10.0.0.1"}')
    monkeypatch.setenv("KERAS_HOME", "/home/me")
    monkeypatch.setenv("MY_TOKEN", "secret")
    of = environment()
    assert of["versions"]["finetune"] == __version__
    assert {"tensorflow", "keras", "numpy"} <= of["versions"].keys()
    assert of["settings"]["keras.floatx"] == "float32"
    assert of["settings"]["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert (of["settings"]["TF_CONFIG"], of["settings"]["KERAS_HOME"]) == ("set", "set")
    text = environment_text(of)
    assert not [word for word in ("10.0.0.1", "/home/me", "secret") if word in text]
    assert text.splitlines()[0] == "versions"
    assert "  CPU:0  CPU" in text
