"""Counts the blocks that `by: block` finds in every network of `keras.applications` and in backbones of KerasHub.

    python scripts/blocks_table.py                     # every network; needs keras-hub
    python scripts/blocks_table.py BertBackbone VGG16  # some of them

Each row has the groups found and the groups expected. The expected number is that of the blocks in the paper or in the
configuration, and the layers before and behind them: a stem or the embeddings, a top convolution, a pooler, a
classifier. Networks are made without weights, those of KerasHub narrow, with as many blocks as the row says. Exits
with 1 where a row differs.
"""

import inspect
import sys
import warnings
from typing import Any

import keras

from finetune.groups.layer_tree import layer_tree
from finetune.groups.strategies import by_block

_TEXT = {
    "vocabulary_size": 20,
    "num_layers": 12,
    "num_heads": 2,
    "num_attention_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 8,
    "max_sequence_length": 8,
    "embedding_dim": 8,
    "head_size": 4,
    "max_wavelength": 100,
    "max_encoder_sequence_length": 8,
    "max_decoder_sequence_length": 8,
    "vocab_size": 20,
    "dropout": 0.1,
}
_DECODER = {
    "vocabulary_size": 20,
    "num_layers": 12,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 8,
    "intermediate_dim": 8,
    "head_dim": 4,
    "num_experts": 4,
    "moe_intermediate_dim": 8,
    "top_k": 2,
    "shared_expert_intermediate_dim": 8,
    "norm_top_k_prob": True,
    "decoder_sparse_step": 1,
    "image_size": 16,
}
_IMAGE = {
    "image_shape": (32, 32, 3),
    "patch_size": 16,
    "num_layers": 12,
    "num_heads": 2,
    "hidden_dim": 8,
    "mlp_dim": 8,
    "intermediate_dim": 8,
}
_MIT = {
    "image_shape": (64, 64, 3),
    "layerwise_depths": [2] * 4,
    "depths": [2] * 4,
    "num_layers": 4,
    "layerwise_num_heads": [1, 2, 2, 2],
    "layerwise_sr_ratios": [8, 4, 2, 1],
    "hidden_dims": [4, 8, 8, 8],
    "layerwise_patch_sizes": [7, 3, 3, 3],
    "layerwise_strides": [4, 2, 2, 2],
    "max_drop_path_rate": 0.1,
}
_SWIN = {
    "image_shape": (64, 64, 3),
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2, 6, 2],
    "num_heads": [1, 2, 2, 2],
    "window_size": 2,
}
_VIDEO = _IMAGE | {"num_frames": 2, "num_spatial_layers": 3, "num_temporal_layers": 2, "num_auxiliary_layers": 0}

# Embeddings, 12 blocks; BERT and FNet have a pooler, encoder-decoders have two stacks.
BACKBONES: dict[str, tuple[dict[str, Any], int]] = {
    **dict.fromkeys(("Bloom", "DebertaV3", "DistilBert", "ESM", "Falcon", "GPT2", "GPTNeoX", "OPT"), (_TEXT, 13)),
    **dict.fromkeys(("Roberta", "XLMRoberta", "RoformerV2"), (_TEXT, 13)),
    **dict.fromkeys(("Bert", "FNet", "XLNet"), (_TEXT, 14)),
    **dict.fromkeys(("Bart", "Whisper"), (_TEXT, 26)),
    "T5": (_TEXT, 25),
    "Electra": (_TEXT, 14),
    "Albert": (_TEXT, 3),  # all blocks share their weights
    **dict.fromkeys(("Llama", "Llama3", "Mistral", "Gemma", "Gemma3", "Phi3", "Qwen", "Qwen2"), (_DECODER, 13)),
    **dict.fromkeys(("Qwen3", "Mixtral", "Qwen3Moe", "QwenMoe", "GptOss"), (_DECODER, 13)),
    **dict.fromkeys(("ViT", "DeiT", "DINOV3"), (_IMAGE, 13)),
    "DINOV2": (_IMAGE | {"patch_size": 14, "image_shape": (28, 28, 3)}, 13),
    "SwinTransformer": (_SWIN, 16),  # 12 blocks, the embedding, three layers that merge patches
    "MiT": (_MIT, 12),  # 8 blocks, four embeddings
    "VideoPrism": (_VIDEO, 7),  # two towers of 3 and 2 blocks with an embedding each
    "VGG": ({"stackwise_num_repeats": [2, 2, 3, 3, 3], "stackwise_num_filters": [4] * 5}, 5),
    "DenseNet": ({"stackwise_num_repeats": [2, 3], "growth_rate": 2, "compression_ratio": 0.5}, 7),
}
# Blocks of the paper, the stem, layers between the stages, a top convolution, the classifier. Not here: NASNet,
# Inception and Xception, whose names of layers show no or few blocks (`conv2d_17`).
APPLICATIONS = {
    "ConvNeXtTiny": 18 + 5,
    "ConvNeXtSmall": 36 + 5,
    "ConvNeXtBase": 36 + 5,
    "ConvNeXtLarge": 36 + 5,
    "ConvNeXtXLarge": 36 + 5,
    "DenseNet121": 58 + 5,
    "DenseNet169": 82 + 5,
    "DenseNet201": 98 + 5,
    "EfficientNetB0": 16 + 3,
    "EfficientNetB1": 23 + 3,
    "EfficientNetB2": 23 + 3,
    "EfficientNetB3": 26 + 3,
    "EfficientNetB4": 32 + 3,
    "EfficientNetB5": 39 + 3,
    "EfficientNetB6": 45 + 3,
    "EfficientNetB7": 55 + 3,
    "EfficientNetV2B0": 21 + 3,
    "EfficientNetV2B1": 27 + 3,
    "EfficientNetV2B2": 28 + 3,
    "EfficientNetV2B3": 32 + 3,
    "EfficientNetV2S": 40 + 3,
    "EfficientNetV2M": 57 + 3,
    "EfficientNetV2L": 79 + 3,
    "MobileNet": 13 + 2,
    "MobileNetV2": 17 + 3,
    "MobileNetV3Small": 11 + 4,
    "MobileNetV3Large": 15 + 4,
    "ResNet50": 16 + 2,
    "ResNet101": 33 + 2,
    "ResNet152": 50 + 2,
    "ResNet50V2": 16 + 2,
    "ResNet101V2": 33 + 2,
    "ResNet152V2": 50 + 2,
    "VGG16": 5 + 3,
    "VGG19": 5 + 3,
}


def groups_of(name: str) -> int:
    """Returns the number of groups that `by: block` makes of a network of the table."""
    if name in APPLICATIONS:
        model = getattr(keras.applications, name)(weights=None)
    else:
        import keras_hub

        kind = getattr(keras_hub.models, name)
        config, _ = BACKBONES[name.removesuffix("Backbone")]
        taken = inspect.signature(kind.__init__).parameters
        model = kind(**{key: value for key, value in config.items() if key in taken})
    return len(by_block(layer_tree(model)))


def main(names: list[str]) -> int:
    """Prints the table; returns 1 where a row differs from what is expected."""
    expected = {f"{name}Backbone": groups for name, (_, groups) in BACKBONES.items()} | APPLICATIONS
    warnings.simplefilter("ignore")  # of KerasHub, about masks
    failed = 0
    for name in names or expected:
        found = groups_of(name)
        keras.backend.clear_session()
        failed += found != expected[name]
        print(f"{name:28} {found:4} {expected[name]:4} {'' if found == expected[name] else 'DIFFERS'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
