"""The `report` of a recipe: what is written about a run when it has ended."""

from typing import Any

from pydantic import model_validator

from finetune.recipe.fields import Part, fault


class ReportSpec(Part):
    """What is written about a run at its end; `report: off` writes nothing of it.

    Attributes:
        page: Whether `report.html`, `model_card.md` and `predictions.npz` are written. `report: off` sets it.
        examples: Whether the report shows the inputs of the test rows with the worst errors.
    """

    page: bool = True
    examples: bool = True

    @model_validator(mode="before")
    @classmethod
    def _check_form(cls, value: Any) -> Any:
        if value is False or value == "off":  # `False` is what YAML 1.1 makes of an unquoted `off`
            return {"page": False}
        if not isinstance(value, dict):
            raise fault("has keys of its own, such as `report: {examples: false}`, or is `off`", received=value)
        return value
