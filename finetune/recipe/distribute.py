"""The `distribute` of a recipe: on which devices and machines the steps of a run are made."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from finetune.recipe.fields import Count, Part, choice, fault

DEVICES = ("auto", "single", "mirrored", "multi_worker", "tpu")


class Distribute(Part):
    """On which devices the steps of a run are made. The results are those of a single device with the same batches.

    Attributes:
        devices: `single` makes the steps on one device, `mirrored` on all GPUs of this machine (or on `cpu_devices`),
            `multi_worker` in several processes, which `finetune launch` or `TF_CONFIG` names, `tpu` on a TPU. `auto`
            takes several processes where there are some, else all GPUs if there are several, else a single device.
        batch_size_is: Whether `train.batch_size` counts the rows of a step on all devices together (`global`), or those
            on each of them (`per_replica`). Schedules and results go by the global one, which the plan shows.
        scale_rates: With `per_replica`, by what the rates of all groups are multiplied: the number of replicas
            (`linear`) or its square root (`sqrt`). By default rates are used as they are written.
        batch_norm: Whether BatchNormalization normalizes by the rows of its replica (`local`), or by those of all
            (`synchronized`), as on a single device.
        cpu_devices: Divides the CPU into so many devices, >= 2, to try several replicas on a machine without GPUs.
    """

    devices: Annotated[Literal["auto", "single", "mirrored", "multi_worker", "tpu"], choice(*DEVICES)] = "auto"
    batch_size_is: Annotated[Literal["global", "per_replica"], choice("global", "per_replica")] = "global"
    scale_rates: Annotated[Literal["linear", "sqrt"] | None, choice("linear", "sqrt", None)] = None
    batch_norm: Annotated[Literal["local", "synchronized"], choice("local", "synchronized")] = "local"
    cpu_devices: Annotated[Count, Field(ge=2)] | None = None

    @field_validator("scale_rates")
    @classmethod
    def _check_scale(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("batch_size_is") == "global":
            raise fault(
                "is for `batch_size_is: per_replica`, where more replicas make larger batches. A global batch is the "
                "same on any number of devices. Remove one of the two",
                about="key",
            )
        return value

    @field_validator("cpu_devices")
    @classmethod
    def _check_cpu_devices(cls, value: int | None, info: ValidationInfo) -> int | None:
        devices = info.data.get("devices", "auto")
        if value and devices not in ("auto", "mirrored"):
            raise fault(f"is for `devices: mirrored`, and `devices` is `{devices}`. Remove one of the two", about="key")
        return value
