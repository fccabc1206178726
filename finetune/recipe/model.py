"""The `model` of a recipe: where the network comes from, and the head that is put on it."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from finetune.errors import quote
from finetune.recipe.fields import (
    Arguments,
    Count,
    FilePath,
    Identifier,
    ListOf,
    OneOrMore,
    Part,
    Text,
    choice,
    fault,
    matched,
    one_of,
    pick,
    show,
)

APPLICATIONS = (
    *("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge"),
    *("DenseNet121", "DenseNet169", "DenseNet201"),
    *(f"EfficientNetB{size}" for size in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *("InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small"),
    *("NASNetLarge", "NASNetMobile", "ResNet50", "ResNet50V2", "ResNet101", "ResNet101V2", "ResNet152", "ResNet152V2"),
    *("VGG16", "VGG19", "Xception"),
)
_SOURCES = ("builder", "keras_file", "application", "preset", "hub")
_KEYS_OF = {  # keys that only some sources have
    "arguments": ("builder", "application", "preset"),
    "weights": ("application",),
    "include_top": ("application",),
    "input_shape": ("application", "hub"),
    "signature": ("hub",),
    "output_key": ("hub", "preset"),
    "output_shape": ("hub",),
}
Pooling = Literal["average", "max", "first", "flatten", "none"]


def _check_package(builder: str) -> str:
    # The examples may be run without the user's permission, the other functions of finetune were not written for that.
    if builder.split(":")[0].split(".")[0] == "finetune" and not builder.startswith("finetune.examples."):
        raise fault("may name only `finetune.examples.<module>:<function>` inside finetune", received=builder)
    return builder


Builder = Annotated[
    str,
    matched(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "must be spelled `package.module:function`"),
    AfterValidator(_check_package),
]


def _known_spelling(name: str) -> str:
    """Accepts other spellings of a name: `resnet50_v2`, `EfficientNet-B0`."""
    plain = {known.lower(): known for known in APPLICATIONS}
    return plain.get(name.lower().replace("_", "").replace("-", "")) or pick(name, APPLICATIONS)


def _check_classes(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= 10**12):
        return value
    raise fault("must be a whole number of at least 1, or `auto`, which counts the classes in the data", received=value)


class Head(Part):
    """A standard head: pooling, hidden layers, dropout, and a layer with an output for each class.

    Attributes:
        classes: Width of the last layer; `auto` takes that of the targets.
        units: Widths of hidden dense layers before it.
        pooling: How the output before it becomes a vector for each row; by default `average` where that is needed.
        dropout: Share of values dropped before each dense layer.
        activation: Of the last layer; by default `softmax`, and `sigmoid` for a single class. `linear` applies none.
        hidden_activation: Of the hidden layers.
        after: Layer of the network after which the head begins; by default its output.
        standardize: Whether the head multiplies its outputs with the standard deviation of the training targets and
            adds their mean, for targets that are large numbers, such as prices.
    """

    classes: Annotated[int | Literal["auto"], BeforeValidator(_check_classes)]
    units: OneOrMore[Count] = ()
    pooling: Annotated[Pooling, choice(*get_args(Pooling))] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    activation: Identifier | None = None
    hidden_activation: Identifier = "relu"
    after: Text | None = None
    standardize: bool = False


class ModelSource(Part):
    """Where the network comes from: exactly one of the first five keys.

    Attributes:
        builder: A function that returns it, called with `arguments`.
        keras_file: A file that `model.save` wrote.
        application: A network of `keras.applications`, made with `arguments`.
        preset: A KerasHub preset: a local folder, or a handle.
        hub: A TensorFlow Hub handle, or a local SavedModel, as a folder or archive.
        arguments: Keyword arguments of the builder, application or preset.
        weights: Initial weights of an application: `imagenet`, `none`, or a weight file.
        include_top: Whether an application keeps Keras' head.
        input_shape: Shape of one row.
        signature: Which signature of a SavedModel to run.
        output_key: Which of several outputs to take.
        output_shape: Shape of one row of a SavedModel's output, where the file does not say.
        head: A new head.
    """

    builder: Builder | None = None
    keras_file: FilePath | None = None
    application: Annotated[str, AfterValidator(_known_spelling)] | None = None
    preset: FilePath | None = None
    hub: FilePath | None = None
    arguments: Arguments = Field(default_factory=dict)
    weights: FilePath | None = None
    include_top: bool = False
    input_shape: ListOf[Count] | None = None
    signature: Text | None = None
    output_key: Text | None = None
    output_shape: ListOf[Count] | None = None
    head: Head | None = None

    @field_validator("hub")
    @classmethod
    def _check_source(cls, value: Any, info: ValidationInfo) -> Any:
        return one_of(value, info, *_SOURCES[:-1])

    @model_validator(mode="after")
    def _check_keys_of_source(self) -> "ModelSource":
        source = next(name for name in _SOURCES if getattr(self, name) is not None)
        for key, sources in _KEYS_OF.items():
            if getattr(self, key) not in (None, False, {}) and source not in sources:
                rule = f"is for models from {quote(sources)}, and this model is from `{source}`. Remove it"
                raise fault(rule, at=(key,))
        if source == "application":
            self._check_application()
        return self

    def _check_application(self) -> None:
        if self.weights is None:
            rule = "is missing. Write `imagenet` (Keras downloads the file), `none`, or the path of a weight file"
            raise fault(rule, at=("weights",))
        if self.input_shape is None or len(self.input_shape) != 3 or self.input_shape[-1] != 3:
            received = f". Received: {show(self.input_shape)}" if self.input_shape else ""
            rule = "must be height, width and 3 channels of an image, e.g. `[224, 224, 3]`"
            raise fault(rule + received, at=("input_shape",))
        if self.include_top == (self.head is not None):
            received = "both" if self.include_top else "neither"
            rule = "needs a `head` for your classes, or `include_top: true` to keep the head of the network"
            raise fault(f"{rule}. Received {received} of them")
