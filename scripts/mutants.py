"""The mutants of a module: small changes to its code, made with the operators of cosmic-ray and a few more.

A *site* is a place in the code that an operator can change, and each site gives one mutant. Where cosmic-ray knows
several changes for a site (a `+` can become eleven other operators), the nearest is taken, for two reasons: `a - b` in
place of `a + b` runs and gives another number, while `a >> b` is a `TypeError` that any test notices; and a sum gets no
more weight in a sample than a condition.

Operators that cosmic-ray lacks: a statement is removed, an argument or an element is dropped, the condition of an
`elif` or of a comprehension is negated, `in` becomes `not in`, `min` becomes `max`. Not changed, because no test of
behaviour is expected to notice: docstrings and other strings, annotations, decorators, imports, the text of errors,
`__repr__`, `strict=` of `zip`, `read_value=` of assignments, names of operations, and code for type checkers.
"""

import difflib
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import parso.python.tree as tree  # pyright: ignore[reportMissingImports]  # the extra `mutation`
from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]
from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.operator import Operator  # pyright: ignore[reportMissingImports]
from cosmic_ray.operators.provider import OperatorProvider  # pyright: ignore[reportMissingImports]

# Each operator and the nearest that is defined for the same types.
_BINARY = (
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul"),
    *("BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitAnd", "LShift_RShift", "RShift_LShift"),
)
_COMPARISON = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")
_CORE = (
    *(f"ReplaceBinaryOperator_{change}" for change in _BINARY),
    *(f"ReplaceComparisonOperator_{change}" for change in _COMPARISON),
    *("ReplaceUnaryOperator_USub_UAdd", "ReplaceUnaryOperator_Delete_Not", "AddNot", "NumberReplacer"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
)
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}
_COMPOUND = ("if_stmt", "while_stmt", "for_stmt", "with_stmt", "try_stmt", "funcdef", "classdef", "except_clause")


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        operator: Class name of the operator.
        line: First line of the site, from 1.
        lines: First and last line of the statement that holds the site; of a compound statement, of that part of its
            header.
        body: Lines of the body of the function whose default value the site is, else None.
        code: The source of the whole module, changed.
        diff: What differs, in the unified format without context.
    """

    operator: str
    line: int
    lines: tuple[int, int]
    body: tuple[int, int] | None
    code: str
    diff: str

    @property
    def key(self) -> str:
        """Identifies the mutant among those of all versions of the module."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


class DropStatement(Operator):
    """Replaces a call, a raised error, or an assignment to an attribute or an entry by `pass`."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt" and node.children[0].type != "pass_stmt" and _drops(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        node.children[0] = tree.Name(node.children[0].get_first_leaf().prefix + "pass", node.start_pos)
        return node

    @classmethod
    def examples(cls):
        return ()


def _drops(statement) -> bool:
    if statement.type == "expr_stmt":  # removing an assignment to a name is a NameError, which says nothing
        return isinstance(statement.children[1], tree.Operator) and statement.children[0].type in ("atom_expr", "power")
    return statement.type in ("raise_stmt", "del_stmt", "atom_expr", "power", "yield_expr")


class DropArgument(Operator):
    """Removes an argument that is passed by name or unpacked."""

    def mutation_positions(self, node):
        for argument in _arguments(node):
            yield argument.start_pos, argument.end_pos

    def mutate(self, node, index):
        dropped = _arguments(node)[index]
        if node.type == "trailer":
            node.children.remove(dropped)
        else:
            kept = [c.get_code() for c in node.children if c is not dropped and not _is_comma(c)]
            node.children = [tree.Name(",".join(kept), node.start_pos)]
        return node

    @classmethod
    def examples(cls):
        return ()


def _arguments(node) -> list:
    if node.type not in ("arglist", "trailer"):
        return []
    passed = [child for child in node.children if child.type == "argument" and child.children[0] in ("*", "**")]
    named = [child for child in node.children if child.type == "argument" and child.children[1] == "="]
    labels = {"strict", "read_value"}  # an assertion of `zip`; an assignment with or without a tensor that nobody reads
    if _callee(node).startswith(("tf.", "keras.")):
        labels.add("name")  # of a TensorFlow operation or a Keras variable: for people who look at graphs
    return passed + [child for child in named if child.children[0].value not in labels]


def _callee(node) -> str:
    call = node if node.type == "trailer" else node.parent
    return call.parent.get_code().strip() if call.parent is not None else ""


class DropElement(Operator):
    """Removes an element of a tuple, list, set or dict that has at least two."""

    def mutation_positions(self, node):
        for element in _elements(node):
            yield element[0].start_pos, element[-1].end_pos

    def mutate(self, node, index):
        kept = [element for number, element in enumerate(_elements(node)) if number != index]
        code = "".join("".join(part.get_code() for part in element) + "," for element in kept)
        node.children = [tree.Name(code, node.start_pos)]
        return node

    @classmethod
    def examples(cls):
        return ()


def _elements(node) -> list[list]:
    """Returns the parts of each element: several for `key: value`."""
    if node.type not in ("testlist_comp", "dictorsetmaker", "testlist", "testlist_star_expr") or _is_target(node):
        return []
    if not any(_is_comma(child) for child in node.children):
        return []
    elements = [[]]
    for child in node.children:
        if _is_comma(child):
            elements.append([])
        else:
            elements[-1].append(child)
    elements = [element for element in elements if element]
    return elements if len(elements) > 1 else []


def _is_target(node) -> bool:
    """Whether values are unpacked into the node."""
    while node.parent is not None and node.type not in _COMPOUND:
        node, child = node.parent, node
        if node.type == "expr_stmt":
            return any(
                c is child and following == "=" for c, following in zip(node.children, node.children[1:], strict=False)
            )
        if node.type in ("for_stmt", "comp_for", "sync_comp_for") and node.children[1] is child:
            return True
    return False


def _is_comma(node) -> bool:
    return isinstance(node, tree.Operator) and node == ","


class NegateCondition(Operator):
    """Negates the conditions that cosmic-ray's `AddNot` leaves alone: of `elif` and of comprehensions."""

    def mutation_positions(self, node):
        for index in self._places(node):
            yield node.children[index].start_pos, node.children[index].end_pos

    def mutate(self, node, index):
        place = self._places(node)[index]
        node.children[place] = tree.Name(f" (not ({node.children[place].get_code()}))", node.start_pos)
        return node

    def _places(self, node) -> list[int]:
        if node.type == "comp_if":
            return [1]
        if node.type != "if_stmt":
            return []
        return [
            i + 1 for i, child in enumerate(node.children) if isinstance(child, tree.Keyword) and child.value == "elif"
        ]

    @classmethod
    def examples(cls):
        return ()


class NegateMembership(Operator):
    """Replaces `in` by `not in` and the reverse."""

    def mutation_positions(self, node):
        for index in self._places(node):
            yield node.children[index].start_pos, node.children[index].end_pos

    def mutate(self, node, index):
        place = self._places(node)[index]
        code = node.children[place].get_code().strip()
        node.children[place] = tree.Name(" in" if code.startswith("not") else " not in", node.children[place].start_pos)
        return node

    def _places(self, node) -> list[int]:
        if node.type != "comparison":
            return []
        return [
            i for i in range(1, len(node.children), 2) if node.children[i].get_code().split() in (["in"], ["not", "in"])
        ]

    @classmethod
    def examples(cls):
        return ()


class CatchNothing(Operator):
    """Replaces what an `except` names by `()`, which catches nothing; cosmic-ray's own fails on dotted names."""

    def mutation_positions(self, node):
        if node.type == "except_clause":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node, index):
        node.children[1] = tree.Name(" ()", node.children[1].start_pos)
        return node

    @classmethod
    def examples(cls):
        return ()


class SwapCall(Operator):
    """Calls `min` for `max`, `all` for `any`, `list` for `sorted`, and so on."""

    def mutation_positions(self, node):
        if isinstance(node, tree.Name) and node.value in _CALLS:
            following = node.get_next_leaf()
            if following == "(" and node.get_previous_leaf() != ".":
                yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        node.value = _CALLS[node.value]
        return node

    @classmethod
    def examples(cls):
        return ()


def sample(code: str, size: int, seed: int) -> tuple[list[Mutant], int]:
    """Returns a sample of the mutants of a module, in the order of its lines, and how many sites there are.

    Args:
        code: Source of the module.
        size: How many mutants at most.
        seed: Which sample: the same seed and code always give the same one.
    """
    sites = list(_sites(code))
    chance = random.Random(seed)
    chance.shuffle(sites)
    mutants = []
    for operator, occurrences, node in sites:
        if len(mutants) == size:
            break
        changed = mutate_code(code, operator(), chance.choice(occurrences))
        if changed is not None and changed != code and _compiles(changed):
            diff = difflib.unified_diff(code.splitlines(), changed.splitlines(), lineterm="", n=0)
            shown = "\n".join(line for line in diff if not line.startswith(("---", "+++", "@@")))
            place = node.start_pos[0]
            mutants.append(Mutant(operator.__name__, place, _lines(node), _body_of_default(node), changed, shown))
    return sorted(mutants, key=lambda mutant: (mutant.line, mutant.operator)), len(sites)


def _sites(code: str) -> Iterator[tuple[type, list[int], tree.PythonBaseNode]]:
    """Yields an operator, the numbers of its changes to the site, and the node they change."""
    provider = OperatorProvider()
    operators = [
        *(provider[name] for name in _CORE),
        DropStatement,
        DropArgument,
        DropElement,
        NegateCondition,
        NegateMembership,
        CatchNothing,
        SwapCall,
    ]
    nodes = list(ast_nodes(get_ast(code)))
    for operator in operators:
        counted = 0
        for node in nodes:
            places: dict[tuple, list[int]] = {}
            for number, position in enumerate(operator().mutation_positions(node), counted):
                places.setdefault(position, []).append(number)
            counted += sum(map(len, places.values()))
            if places and not _is_noise(node) and not _is_repeated(operator, node):
                yield from ((operator, numbers, _at(node, position)) for position, numbers in places.items())


def _is_repeated(operator: type, node) -> bool:
    """Whether another operator makes the same change, or the change breaks the next line whatever the tests."""
    if operator.__name__ == "AddNot":
        condition = node.children[2 if node.type == "test" else 1]
        return condition.type == "not_test" or (condition.type == "comparison" and len(condition.children) == 3)
    if operator is DropElement and (target := node.parent).type == "expr_stmt":
        return target.children[0].type == "testlist_star_expr"
    if operator.__name__.startswith(("ReplaceTrue", "ReplaceFalse")) and node.parent.type == "argument":
        return getattr(node.parent.children[0], "value", "") in ("strict", "read_value")
    return False


def _at(node, position):
    """Returns the node that starts at a position: a change of an `if` is one of its condition."""
    return node.get_leaf_for_position(position[0]) if hasattr(node, "children") else node


def _is_noise(node) -> bool:
    """Whether no test of behaviour is expected to notice a change: see the docstring of the module."""
    child = node
    while (parent := child.parent) is not None:
        kind = parent.type
        if kind in (
            "fstring",
            "strings",
            "decorator",
            "raise_stmt",
            "import_from",
            "import_name",
            "tfpdef",
            "parameters",
        ):
            return kind != "parameters" or child.type != "param"
        if kind == "annassign" and parent.children[1] is child:
            return True
        if kind == "funcdef" and (parent.name.value in ("__repr__", "__str__") or parent.annotation is child):
            return True
        if kind == "classdef" and child.type != "suite":
            return True
        if kind == "if_stmt" and parent.children[1].get_code().strip() == "TYPE_CHECKING":
            return True
        if kind == "atom_expr" and _is_name_of_noise(parent.children[0]):
            return True
        if kind == "expr_stmt" and parent.children[0].get_code().strip() == "__all__":
            return True
        child = parent
    return False


def _is_name_of_noise(node) -> bool:
    return isinstance(node, tree.Name) and (
        node.value.endswith(("Error", "Warning")) or node.value in ("cast", "TypeVar")
    )


def _compiles(code: str) -> bool:
    try:
        compile(code, "<mutant>", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _lines(node) -> tuple[int, int]:
    while node.parent is not None and node.type != "simple_stmt" and node.parent.type not in _COMPOUND:
        node = node.parent
    return node.start_pos[0], node.get_last_leaf().end_pos[0] if node.type != "simple_stmt" else node.end_pos[0] - 1


def _body_of_default(node) -> tuple[int, int] | None:
    while node.parent is not None and node.type != "simple_stmt":
        if node.type == "param":
            function = node.get_parent_function() if hasattr(node, "get_parent_function") else node.parent.parent
            body = function.children[-1]
            return body.start_pos[0], body.end_pos[0]
        node = node.parent
    return None
