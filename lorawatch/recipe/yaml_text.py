"""YAML as people write it in recipes, and no more of it: plain values, lists and sections, of a bounded size.

Full YAML is a program for its reader: aliases grow a line into gigabytes, tags name classes, and a hundred thousand brackets
end Python's stack. Whatever is wrong with a text is a `RecipeError` that names the line.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from lorawatch.errors import RecipeError

LARGEST = 256 << 10
"""Bytes or characters of a text; a recipe has some hundred."""
_DEEPEST = 16
_MOST_VALUES = 10_000
_LONGEST_NUMBER = 40
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map"))
_HINT = "see `lorawatch --record --help` for a recipe's form"
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$|^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)$"
)


class _Refused(yaml.MarkedYAMLError):
    """Text that is YAML, and no recipe's."""


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise _Refused(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """`2e-4` is a number (YAML 1.1 reads a string) and a date is text; everything beyond plain values is refused."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            _refuse("anchors and aliases (& and *) are not taken: write the value out", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", *_PLAIN_TAGS):
            _refuse(f"the tag {tag!r} is not taken: a recipe has plain values", event.start_mark)
        self._values += 1
        if self._values > _MOST_VALUES:
            _refuse(f"more than {_MOST_VALUES:,} values are too many", event.start_mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            _refuse(f"more than {_DEEPEST} levels are too deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except Exception:  # noqa: BLE001  PyYAML lets through what int, float and a dictionary raise
            shown = str(getattr(node, "value", ""))[:60]
            _refuse(f"{shown!r} is not {_article(str(node.tag).removeprefix(_TAG))}", node.start_mark)

    def construct_scalar(self, node: ScalarNode | MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            try:  # JSON writes letters beyond its escapes in two halves
                value = value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                _refuse("half a letter (an escape from \\ud800 to \\udfff)", node.start_mark)
        if node.tag in (_TAG + "int", _TAG + "float") and len(value) > _LONGEST_NUMBER:
            _refuse(f"a number of {len(value):,} characters is too long", node.start_mark)
        return value

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, MappingNode):
            _refuse("a section is expected here", node.start_mark)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, ScalarNode) or key_node.tag == _TAG + "merge":
                _refuse("a key is a word", key_node.start_mark)
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                _refuse(
                    f"the key {key_node.value[:60]!r} is there twice, first in line {lines[key]}", key_node.start_mark
                )
            lines[key] = line
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_TAG + "timestamp", _TAG + "value")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: no aliases, and quotes around text that it would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as plain data.

    Args:
        where: What the text is, as it stands in messages.

    Raises:
        RecipeError: It is not YAML, or more of it than a recipe may have; names the line.
    """
    return _read(text, where, lambda loader: loader.get_single_data())


def compose_yaml(text: str) -> Node | None:
    """YAML text as nodes that know where they stand in it; None for an empty one.

    Raises:
        RecipeError: As `parse_yaml`, but for values and keys, which it does not look at.
    """
    node: Node | None = _read(text, "recipe", lambda loader: loader.get_single_node())
    return node


def write_yaml(data: Any, **style: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back, keys in their order.

    Letters beyond ASCII stand as they are, but not beside a line break of theirs, which would be read as a space.

    Args:
        style: Of `yaml.dump`.
    """
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    if any(line_break in text for line_break in "\x85\u2028\u2029"):
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, **style)
    return text


def _read(text: str, where: str, work: Any) -> Any:
    if len(text) > LARGEST:
        raise RecipeError(f"{where}: {len(text):,} characters are too many; a recipe has some hundred", hint=_HINT)
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        return work(loader)
    except yaml.reader.ReaderError as error:
        line, problem = text.count("\n", 0, error.position) + 1, "a character that is no text"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line, problem = mark.line + 1 if mark else 1, getattr(error, "problem", None) or "not YAML"
    except Exception:  # noqa: BLE001  its scanner lets through what int and chr raise
        line, problem = loader.line + 1 if loader else 1, "not YAML"
    finally:
        if loader is not None:
            loader.dispose()
    raise RecipeError(f"{where}, line {line}: {problem}", hint=_HINT) from None


def _article(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "map": "a section"}.get(
        kind, f"a {kind}"
    )
