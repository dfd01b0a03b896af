"""Python configuration files of ProtoGCN, PYSKL and MMAction2, read as text: nothing in them is executed.

Such a file assigns plain values to names. Admitted are literals, `dict(…)`, `list(…)` and `tuple(…)`, names assigned
above, arithmetic on numbers, and lists, tuples and strings put together with `+` (lists and tuples also repeated with
`*`). `_base_` names further files, relative to this one, whose values this file's replace or, between dictionaries,
join; `_delete_=True` inside a dictionary drops the base's. That is MMEngine's rule. All else is refused with its line.
"""

import ast
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import UserError

Values = dict[str, Any]
# No configuration needs more, and repeated doubling in a few lines would fill the memory.
MAX_ITEMS = 100_000
MAX_NUMBER = 2**63
UNPACKED = object()  # stands for the key in `**values`
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def read_config(path: str | Path) -> Values:
    """The values that a configuration file and its bases assign, by name.

    Raises UserError with file and line for everything that is more than data, and for a base that is missing,
    absolute or includes itself.
    """
    return _read(Path(path), ())


def _read(path: Path, above: tuple[Path, ...]) -> Values:
    if path.resolve() in above:
        raise UserError(f"{path}: is a base of itself ({' -> '.join(p.name for p in above)}); remove one `_base_`")
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a configuration file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text; name a Python configuration file") from None
    own = _Reader(path).read(source)
    bases = own.pop("_base_", [])
    joined: Values = {}
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str) or Path(base).is_absolute() or "::" in base:
            raise UserError(f"{path}: _base_ = {base!r} is not supported: name a file relative to this one")
        values = _read(path.parent / base, (*above, path.resolve()))
        doubled = sorted(joined.keys() & values.keys())
        if doubled:
            raise UserError(f"{path}: two files of _base_ both assign {', '.join(doubled)}; keep one")
        joined |= values
    return _merged(own, joined, str(path))


def _merged(own: Values, base: Values, where: str) -> Values:
    """`base` with the values of `own` put over it; neither is changed."""
    result = dict(base)
    for key, value in own.items():
        below = base.get(key)
        if isinstance(value, dict):
            if value.get("_delete_", False):
                below = {}
            elif key in base and not isinstance(below, dict):
                raise UserError(
                    f"{where}: {key} is a dictionary here, but in the base {below!r:.60}; add `_delete_=True` to it"
                )
            value = _merged({k: v for k, v in value.items() if k != "_delete_"}, below or {}, f"{where}: {key}")
        result[key] = value
    return result


class _Reader:
    """Evaluates one file; `values` holds what was assigned so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: Values = {}

    def read(self, source: str) -> Values:
        try:
            tree = ast.parse(source)
            for statement in tree.body:
                self.statement(statement)
        except SyntaxError as error:
            raise UserError(f"{self.path}, line {error.lineno}: no valid Python ({error.msg})") from None
        except (RecursionError, MemoryError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read as Python ({error or 'nested too deeply'})") from None
        return self.values

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if not isinstance(node, ast.Assign):
            raise self.refused(node, "is not an assignment")
        value = self.value(node.value)
        for target in node.targets:
            if not isinstance(target, ast.Name):
                raise self.refused(target, "is no plain name to assign to")
            self.values[target.id] = value

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=str() | int() | float() | bool() | bytes() | None as value):
                return value
            case ast.Name(id=name):
                if name not in self.values:
                    raise self.refused(node, "is no name assigned above")
                return self.values[name]
            case ast.List(elts=items):
                return self.items(items)
            case ast.Tuple(elts=items):
                return tuple(self.items(items))
            case ast.Dict(keys=keys, values=values):
                named = [UNPACKED if key is None else self.value(key) for key in keys]
                return self.dictionary(node, list(zip(named, values, strict=True)))
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                return self.dictionary(node, [(k.arg or UNPACKED, k.value) for k in keywords])
            case ast.Call(func=ast.Name(id="list" | "tuple" as name), args=[*arguments], keywords=[]):
                return self.sequence(node, name, arguments)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                number = self.value(operand)
                if not _is_number(number):
                    raise self.refused(node, "puts a sign before something that is no number")
                return -number if isinstance(sign, ast.USub) else number
            case ast.BinOp(left=left, op=sign, right=right):
                return self.computed(node, sign, self.value(left), self.value(right))
        raise self.refused(node, "is more than data")

    def items(self, nodes: list[ast.expr]) -> list[Any]:
        found: list[Any] = []
        for node in nodes:
            if not isinstance(node, ast.Starred):
                found.append(self.value(node))
                continue
            inner = self.value(node.value)
            if not isinstance(inner, list | tuple):
                raise self.refused(node, "unpacks something that is no list")
            found += inner
            if len(found) > MAX_ITEMS:
                raise self.refused(node, f"makes more than {MAX_ITEMS} items")
        return found

    def dictionary(self, node: ast.expr, pairs: list[tuple[Any, ast.expr]]) -> Values:
        found: dict[Any, Any] = {}
        for key, value_node in pairs:
            value = self.value(value_node)
            if key is UNPACKED:
                if not isinstance(value, dict):
                    raise self.refused(value_node, "unpacks something that is no dictionary")
                found |= value
            elif isinstance(key, str | int | float | None):
                found[key] = value
            else:
                raise self.refused(node, f"uses {key!r:.40} as a key")
        return found

    def sequence(self, node: ast.expr, name: str, arguments: list[ast.expr]) -> Any:
        inner = self.value(arguments[0]) if len(arguments) == 1 else ()
        if len(arguments) > 1 or not isinstance(inner, list | tuple):
            raise self.refused(node, "calls with something that is no list")
        return list(inner) if name == "list" else tuple(inner)

    def computed(self, node: ast.expr, sign: ast.operator, left: Any, right: Any) -> Any:
        function = OPERATORS.get(type(sign))
        sequences = list | tuple | str
        numbers = _is_number(left) and _is_number(right)
        joins = isinstance(sign, ast.Add) and isinstance(left, sequences) and type(left) is type(right)
        repeats = isinstance(sign, ast.Mult) and isinstance(left, list | tuple) and type(right) is int
        if function is None or not (numbers or joins or repeats):
            raise self.refused(node, "computes more than numbers and lists")
        if (joins and len(left) + len(right) > MAX_ITEMS) or (repeats and len(left) * right > MAX_ITEMS):
            raise self.refused(node, f"makes more than {MAX_ITEMS} items")
        try:
            result = function(left, right)
        except (ZeroDivisionError, OverflowError) as error:
            raise self.refused(node, f"fails ({error})") from None
        if numbers and abs(result) > MAX_NUMBER:
            raise self.refused(node, "makes a number beyond 64 bits")
        return result

    def refused(self, node: ast.AST, reason: str) -> UserError:
        text = " ".join(ast.unparse(node).split())
        line = getattr(node, "lineno", 1)
        return UserError(
            f"{self.path}, line {line}: `{text if len(text) < 60 else text[:60] + ' …'}` {reason}. Only plain values "
            "are read from a configuration, nothing is executed; write the value itself"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
