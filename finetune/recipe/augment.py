"""The `data.augment` of a recipe: Keras layers that change the training rows in every epoch, checked without Keras."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_serializer, model_validator

from finetune.recipe.fields import Arguments, Part, fault, offer, pick

_RANGE = "value_range"
_FILL = ("interpolation", "fill_mode", "fill_value")
# The layers of Keras that draw random numbers and keep the form of a row, with their arguments. Beyond these, all take
# `data_format`, which is that of the network's input, and `seed`, which is the recipe's.
AUGMENT_LAYERS: Mapping[str, Sequence[str]] = {
    "AugMix": (_RANGE, "num_chains", "chain_depth", "factor", "alpha", "all_ops", "interpolation"),
    "CutMix": ("factor",),
    "Dropout": ("rate",),
    "GaussianDropout": ("rate",),
    "GaussianNoise": ("stddev",),
    "MixUp": ("alpha",),
    "RandAugment": (_RANGE, "num_ops", "factor", "interpolation"),
    "RandomBrightness": ("factor", _RANGE),
    "RandomColorDegeneration": ("factor", _RANGE),
    "RandomColorJitter": (*(_RANGE, "brightness_factor", "contrast_factor", "saturation_factor", "hue_factor"),),
    "RandomContrast": ("factor", _RANGE),
    "RandomCrop": ("height", "width"),
    "RandomElasticTransform": ("factor", "scale", *_FILL, _RANGE),
    "RandomErasing": ("factor", "scale", "fill_value", _RANGE),
    "RandomFlip": ("mode",),
    "RandomGaussianBlur": ("factor", "kernel_size", "sigma", _RANGE),
    "RandomGrayscale": ("factor",),
    "RandomHue": ("factor", _RANGE),
    "RandomInvert": ("factor", _RANGE),
    "RandomPerspective": ("factor", "scale", "interpolation", "fill_value"),
    "RandomPosterization": ("factor", _RANGE),
    "RandomRotation": ("factor", *_FILL),
    "RandomSaturation": ("factor", _RANGE),
    "RandomSharpness": ("factor", _RANGE),
    "RandomShear": ("x_factor", "y_factor", *_FILL),
    "RandomTranslation": ("height_factor", "width_factor", *_FILL),
    "RandomZoom": ("height_factor", "width_factor", *_FILL),
    "Solarization": ("addition_factor", "threshold_factor", _RANGE),
    "SpatialDropout2D": ("rate",),
}
_NEEDED: Mapping[str, Sequence[str]] = {  # arguments without a default
    **dict.fromkeys(("Dropout", "GaussianDropout", "SpatialDropout2D"), ("rate",)),
    "GaussianNoise": ("stddev",),
    **dict.fromkeys(
        (
            *("RandomBrightness", "RandomColorDegeneration", "RandomContrast", "RandomHue", "RandomPosterization"),
            *("RandomRotation", "RandomSaturation", "RandomSharpness"),
        ),
        ("factor",),
    ),
    "RandomCrop": ("height", "width"),
    "RandomTranslation": ("height_factor", "width_factor"),
    "RandomZoom": ("height_factor",),
}
_FLIPS = ("horizontal", "vertical", "horizontal_and_vertical")
MIXING_LAYERS = ("CutMix", "MixUp")  # they blend the rows of a batch, and their targets
_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(
        ("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "Normalization", "Rescaling"),
        "changes every row alike, and only training rows are augmented: the rows to test on would look different. Put "
        "it into the network",
    ),
    **dict.fromkeys(
        ("CenterCrop", "Resizing"), "changes the size of all images alike. Set `data.size` and `data.resize` instead"
    ),
    "MaxNumBoundingBoxes": "is for boxes, and the data have none. Remove it",
}


def _known_layer(name: str) -> str:
    """Returns Keras' name of a layer, whose words may also be separated: `random_flip`."""
    plain = {known.lower(): known for known in (*AUGMENT_LAYERS, *_ELSEWHERE)}
    known = plain.get(name.lower().replace("_", "")) or pick(name, AUGMENT_LAYERS)
    if known in _ELSEWHERE:
        raise fault(f"{_ELSEWHERE[known]}. Received: `{known}`")
    return known


class AugmentLayer(Part):
    """A Keras layer by its name: `RandomFlip`, or `{layer: RandomFlip, mode: horizontal}`.

    Attributes:
        layer: Keras' name of the layer.
        arguments: The keyword arguments written beside the name.
    """

    layer: Annotated[str, AfterValidator(_known_layer)]
    arguments: Arguments = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"layer": value}
        if isinstance(value, AugmentLayer):
            return value
        if not isinstance(value, dict):
            raise fault("must be the name of a layer, or a mapping with `layer`", received=value)
        arguments = {key: item for key, item in value.items() if key != "layer"}
        return {key: value[key] for key in ("layer",) if key in value} | {"arguments": arguments}

    @model_validator(mode="after")
    def _check_arguments(self) -> "AugmentLayer":
        known = AUGMENT_LAYERS[self.layer]
        for key in self.arguments:
            if key == "seed":
                raise fault("is the seed of the recipe: `seed` beside `data`. Remove it", at=(key,), about="key")
            if key not in known:
                raise fault(f"is not an argument of `{self.layer}`.{offer(key, known)}", at=(key,), about="key")
        if self.layer == "RandomFlip" and "mode" in self.arguments:
            pick(self.arguments["mode"], _FLIPS, at=("mode",))  # Keras takes any, and does nothing where it is unknown
        if missing := [name for name in _NEEDED.get(self.layer, ()) if self.arguments.get(name) is None]:
            raise fault(f"needs `{missing[0]}` beside `layer: {self.layer}`", about="mapping", at=("layer",))
        return self

    @model_serializer
    def _join(self) -> Any:
        return {"layer": self.layer, **self.arguments} if self.arguments else self.layer
