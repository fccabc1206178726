import pytest

from finetune.errors import FinetuneError
from finetune.recipe.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("1h30m", 5400),
        ("90", 90),
        ("0.5h", 1800),
        ("1d", 86400),
        (" 2M ", 120),
        ("1h5", 3605),
    ],
)
def test_a_length_of_time_is_read(text, seconds):
    assert seconds_of(text, "`--time-limit`") == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0s", "1.2.3s", "m", "5m3h", "1e3", "٣s"])
def test_what_is_no_length_of_time_is_refused_with_examples(text):
    with pytest.raises(FinetuneError) as error:
        seconds_of(text, "`--time-limit`")
    assert str(error.value) == (
        f"`--time-limit` is a length of time, such as `90s`, `20m` or `1h30m`. Received `{text}`."
    )
