"""What the source of a builder says about it, without running any of it: does the function exist, what does it take?

Where the source does not say for sure, nothing is said: compiled modules, functions behind decorators, names that a
module makes while it is imported.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import did_you_mean, quote
from finetune.recipe.loader import place_of
from finetune.recipe.schema import Recipe

_DYNAMIC = ("globals", "exec", "setattr", "vars")  # calls that may define any name
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def builder_problems(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence, with its place, for each builder of a recipe that cannot be called as the recipe says."""
    for key, source in (("model", recipe.model), ("data", recipe.data)):
        problem, about = problem_of(source.builder, source.arguments) if source.builder else ("", "builder")
        if problem:
            written = about != "arguments" or source.arguments
            place = place_of(recipe, key, about if written else "builder")
            yield f"{place}: `{key}.builder`: {problem}" if place else f"`{key}.builder`: {problem}"


def problem_of(builder: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what is wrong with a builder.

    Args:
        builder: `package.module:function`.
        arguments: The keyword arguments that the recipe gives it.

    Returns:
        The problem as sentences, empty where none shows; and the key that it is about, `builder` or `arguments`.
    """
    module, _, name = builder.partition(":")
    path = _source_of(module)
    if isinstance(path, str):
        return path, "builder"
    if path is None:
        return "", "builder"
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return f"`{path}` is not Python that can be imported: {error.args[0]}{line}.", "builder"
    definitions, is_complete = _names_of(tree)
    if name not in definitions:
        functions = [key for key, nodes in definitions.items() if _is_function(nodes) and not key.startswith("_")]
        has = f"it has {quote(functions) or 'none'}.{did_you_mean(name, functions)}"
        return (f"`{module}` has no function `{name}`; {has}" if is_complete else ""), "builder"
    nodes = definitions[name]
    function = nodes[0]
    # A method of the same name is not in the body of the module.
    is_only = len(nodes) == 1 and function in tree.body
    if not is_only or not isinstance(function, _Function) or function.decorator_list or function.args.posonlyargs:
        return "", "builder"
    return _wrong_arguments(builder, function, arguments), "arguments"


def _source_of(module: str) -> Path | str | None:
    """Returns the file of a module; a sentence where there is no such module; `None` where that is not known.

    Only the top package is looked for by Python's own rules: for a module inside of it, Python imports the package.
    """
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return f"there is no module `{top}` to import. Install the package, or add its folder to `PYTHONPATH`."
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not folders:
        is_source = spec.origin is not None and spec.origin.endswith(".py") and not below
        return Path(spec.origin) if is_source and spec.origin else None
    for depth, part in enumerate(below, start=1):
        packages = [folder / part for folder in folders if (folder / part).is_dir()]
        files = [folder / f"{part}.py" for folder in folders if (folder / f"{part}.py").is_file()]
        if depth == len(below) and files and not any((package / "__init__.py").is_file() for package in packages):
            return files[0]
        if not packages:
            if not all(folder.is_dir() for folder in folders) or any(_compiled(folder, part) for folder in folders):
                return None
            known = sorted({path.stem for folder in folders for path in folder.glob("*.py")} - {"__init__"})
            return (
                f"there is no module `{'.'.join([top, *below[:depth]])}`. `{'.'.join([top, *below[: depth - 1]])}` has "
                f"{quote(known) or 'none'}.{did_you_mean(part, known)}"
            )
        folders = packages
    return next((folder / "__init__.py" for folder in folders if (folder / "__init__.py").is_file()), None)


def _compiled(folder: Path, name: str) -> bool:
    return any(folder.glob(f"{name}.*"))


def _names_of(tree: ast.Module) -> tuple[dict[str, list[ast.AST]], bool]:
    """Returns the names that a module defines, with what defines them, and whether there can be no others."""
    names: dict[str, list[ast.AST]] = {}
    is_complete = True
    for node in ast.walk(tree):
        if isinstance(node, _Function | ast.ClassDef):
            names.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                is_complete &= alias.name != "*"
                names.setdefault(alias.asname or alias.name.partition(".")[0], []).append(node)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                names.setdefault(node.id, []).append(node)
            is_complete &= node.id not in _DYNAMIC
    return names, is_complete and "__getattr__" not in names


def _is_function(nodes: list[ast.AST]) -> bool:
    return any(isinstance(node, _Function) for node in nodes)


def _wrong_arguments(builder: str, function: _Function, arguments: Mapping[str, Any]) -> str:
    written = function.args
    by_name = [*written.args, *written.kwonlyargs]
    names = [argument.arg for argument in by_name]
    without_default = {argument.arg for argument in written.args[: len(written.args) - len(written.defaults)]}
    without_default |= {a.arg for a, d in zip(written.kwonlyargs, written.kw_defaults, strict=True) if d is None}
    unknown = [name for name in arguments if name not in names and not written.kwarg]
    missing = [name for name in names if name in without_default and name not in arguments]
    accepts = f"It accepts `({ast.unparse(written)})`."
    if unknown:
        return f"`{builder}` does not take {quote(unknown)}. {accepts}{did_you_mean(unknown[0], names)}"
    return f"`{builder}` needs {quote(missing)} in `arguments`. {accepts}" if missing else ""
