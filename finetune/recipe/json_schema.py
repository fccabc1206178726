"""The JSON schema of a recipe, by which an editor completes keys, shows what each means and marks misspelt ones.

It is read from the annotations and docstrings of the schema itself. It is never stricter than `finetune check`: where a
validator takes more than the annotation says, the annotation is a suggestion. Rules between keys are left to `check`.
"""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, GetPydanticSchema
from pydantic.fields import FieldInfo

from finetune.recipe.fields import IN_A_LIST, Part, RecipePath
from finetune.recipe.keys import default_text, meanings, takes_arguments
from finetune.recipe.optimizers import OPTIMIZERS, OptimizerSpec
from finetune.recipe.schema import Recipe

DRAFT = "http://json-schema.org/draft-07/schema#"  # what the YAML language server reads
TITLE = "A recipe of finetune"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", RecipePath: "string"}
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe as plain data; parts of a recipe are under `definitions`, by their class."""
    definitions: dict[str, Any] = {}
    _reference(Recipe, definitions)
    root = definitions.pop(Recipe.__name__)
    path = {"type": "string"}
    root["properties"]["extends"] = {
        "description": "Another recipe, or several, that this one changes. Relative to this file.",
        "anyOf": [path, {"type": "array", "items": path}],
    }
    required = [name for name, field in Recipe.model_fields.items() if field.is_required()]
    whole = {"if": {"not": {"required": ["extends"]}}, "then": {"required": required}}
    return {"$schema": DRAFT, "title": TITLE, **root, **whole, "definitions": definitions}


def _reference(part: type[Part], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns a reference to the schema of a part, which is added to the definitions."""
    if part.__name__ not in definitions:
        definitions[part.__name__] = {}  # before its fields are followed: a chain of schedules has schedules in it
        definitions[part.__name__] = _mapping(part, definitions)
    return {"$ref": f"#/definitions/{part.__name__}"}


def _mapping(part: type[Part], definitions: dict[str, Any]) -> dict[str, Any]:
    texts, hints = meanings(part), get_type_hints(part, include_extras=True)
    properties = {}
    for name, field in part.model_fields.items():
        key, default = field.alias or name, default_text(field)
        value = _value(hints[name], definitions)
        said = [texts.get(key, texts.get(name, ""))]
        if default not in ("", "required"):
            said.append(f"Default: `{default}`.")
        if not field.is_required() and value:
            value = {"anyOf": [*value.get("anyOf", [value]), {"type": "null"}]}  # `null` leaves a key out
        value = {"allOf": [value]} if "$ref" in value else value  # beside a reference nothing else is read
        properties[key] = {"description": " ".join(filter(None, said)), **value}
    schema: dict[str, Any] = {"description": (part.__doc__ or "").partition("\n\n")[0], "properties": properties}
    validators = part.__pydantic_decorators__.model_validators.values()
    if not any(each.info.mode == "before" for each in validators):  # which may take a name, or `off`, for a mapping
        schema["type"] = "object"
    if takes_arguments(part):
        del properties["arguments"]
    else:
        schema["additionalProperties"] = False
    return schema  # nothing is required: a recipe that extends another changes single keys of a mapping


def _value(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of the values that an annotation takes."""
    metadata: list[Any] = []
    while get_origin(hint) is Annotated:
        hint, *outer = get_args(hint)
        metadata += [each for item in outer for each in (item.metadata if isinstance(item, FieldInfo) else [item])]
    choices = next((each.func.known for each in metadata if hasattr(getattr(each, "func", None), "known")), ())
    if choices:
        return {"enum": list(choices)}
    schema = _of_type(hint, metadata, definitions)
    if IN_A_LIST in metadata:
        return {"anyOf": [*schema["items"].get("anyOf", [schema["items"]]), schema]}
    is_converted = any(isinstance(each, BeforeValidator) for each in metadata)
    is_converted |= hint is not RecipePath and any(isinstance(each, GetPydanticSchema) for each in metadata)
    # Names of Keras may be spelled in other ways; a bound or a pattern is a rule about a value of the type.
    is_converted |= get_origin(hint) is Literal and any(isinstance(each, AfterValidator) for each in metadata)
    return {"anyOf": [*schema.get("anyOf", [schema]), _others(schema)]} if is_converted and schema else schema


def _others(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of what a validator may take beside an annotation: names and numbers, or anything.

    Keys that the schema knows are checked: a mapping or a list of mappings is then what the annotation says.
    """
    every = schema.get("anyOf", [schema])
    is_open = any(each.get("type") in ("object", "array") and "$ref" not in str(each) for each in every)
    return {} if is_open else {"not": {"type": ["object", "array"]}}


def _of_type(hint: Any, metadata: list[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    if origin is Literal:
        return {"enum": arguments}
    if origin in (Union, UnionType):
        every = [_value(each, definitions) for each in arguments]
        return {"anyOf": [single for each in every for single in each.get("anyOf", [each])]}
    if origin is tuple:
        item = _value(arguments[0], definitions)
        return {"type": "array", "items": _whole(arguments[0], item), **_lengths(metadata, "Items")}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], definitions)}
    if isinstance(hint, type) and issubclass(hint, Part):
        schema = _reference(hint, definitions)
        # A class of the user's spelling may come, too: the names are offered, and others are left to `check`.
        return {"anyOf": [{"enum": list(OPTIMIZERS)}, schema]} if hint is OptimizerSpec else schema
    if hint not in _TYPES:
        return {}
    bounds = {
        key: bound
        for each in metadata
        for name, key in _BOUNDS.items()
        if (bound := getattr(each, name, None)) is not None
    }
    return {"type": _TYPES[hint], **bounds, **(_lengths(metadata, "Length") if hint is str else {})}


def _whole(hint: Any, item: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of the entries of a list, with the keys that each must have."""
    if not (isinstance(hint, type) and issubclass(hint, Part)):
        return item
    required = [field.alias or name for name, field in hint.model_fields.items() if field.is_required()]
    return {"allOf": [item, {"required": required}]} if required else item


def _lengths(metadata: list[Any], of_what: str) -> dict[str, int]:
    keys = {"min_length": f"min{of_what}", "max_length": f"max{of_what}"}
    return {key: n for each in metadata for name, key in keys.items() if (n := getattr(each, name, None)) is not None}
