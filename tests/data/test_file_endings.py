from finetune.data import audio, images
from finetune.data.file_endings import IMAGES, SOUNDS


def test_the_endings_are_those_that_the_readers_take():
    assert (images.ENDINGS, audio.ENDINGS) == (IMAGES, SOUNDS)
    assert not set(IMAGES) & set(SOUNDS)
