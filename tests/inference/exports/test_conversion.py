import logging
import os

import keras
import pytest

from finetune.inference.exports.conversion import not_converted, quiet_converter

ADVICE = "Export it as `savedmodel`, or put other layers in place of those that need the operation."


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (
            ValueError("<unknown>:0: error: loc('x'): 'tf.Erfinv' op is neither a custom op nor a flex op\nmore"),
            "LiteRT has no `Erfinv`.",
        ),
        (
            ValueError("Some ops are not supported by the native TFLite runtime. Flex ops: Erfinv, Betainc\nDetails"),
            "LiteRT has no `Erfinv`, `Betainc`.",
        ),
        (ValueError("Tensorflow op [a/b: Erfinv] is not supported"), "LiteRT has no `Erfinv`."),
        (["Erfinv", "Erfinv"], "LiteRT has no `Erfinv`."),
        (ValueError("no memory"), "it cannot be converted to LiteRT. The converter says: no memory."),
    ],
)
def test_the_operation_that_a_format_lacks_is_named_with_what_to_do(problem, said):
    error = not_converted("LiteRT", keras.Sequential(name="net"), problem)
    assert str(error) == f"All operations of a network must exist in the format. `net`: {said} {ADVICE}"


def test_what_a_converter_logs_and_writes_is_not_shown_and_later_messages_are(caplog, capfd):
    logger = logging.getLogger("tf2onnx")
    with quiet_converter():
        logger.error("not shown")
        os.write(2, b"not shown")
    logger.error("shown")
    os.write(2, b"shown")
    assert [record.message for record in caplog.records] == ["shown"]
    assert capfd.readouterr().err == "shown"
