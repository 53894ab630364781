"""One value of a YAML text changed in place: comments, order and style of the rest stay as a person wrote them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from lorawatch.errors import RecipeError
from lorawatch.recipe.yaml_text import compose_yaml, parse_yaml, write_yaml


def set_value(text: str, path: str, value: Any, order: Sequence[str] = ()) -> str:
    """The text with the value at a dotted path set; a key or section that is not there yet is added.

    Args:
        order: Dotted paths; a new key comes before the first of those behind it here that is there, or else last.

    Where the text's form does not let one value be replaced (a value over several lines), all of it is written again.

    Raises:
        RecipeError: The text is not YAML, or not a mapping.
    """
    wanted = copy.deepcopy(mapping(text))
    keys = path.split(".")
    place = wanted
    for key in keys[:-1]:
        if not isinstance(place.get(key), dict):
            place[key] = {}
        place = place[key]
    place[keys[-1]] = value
    return _checked(_with_value(text, keys, value, order), wanted)


def remove(text: str, path: str) -> str:
    """The text without the key at a dotted path; a section that becomes empty goes too.

    Raises:
        RecipeError: The text is not YAML, or not a mapping.
    """
    wanted = copy.deepcopy(mapping(text))
    keys = path.split(".")
    while keys:
        place: Any = wanted
        for key in keys[:-1]:
            place = place.get(key) if isinstance(place, dict) else None
        if not isinstance(place, dict) or keys[-1] not in place:
            return text
        if len(place) > 1 or len(keys) == 1:
            del place[keys[-1]]
            break
        keys.pop()
    return _checked(_without(text, keys), wanted)


def line_of(text: str, path: str) -> int | None:
    """The line, from 1, where the value at a dotted path stands, or the innermost section on the way to it."""
    try:
        node = compose_yaml(text)
    except RecipeError:
        return None
    line = None
    for key in path.split("."):
        pair = _find(node, key) if isinstance(node, yaml.MappingNode) else None
        if pair is None:
            break
        line, node = pair[0].start_mark.line + 1, pair[1]
    return line


def mapping(text: str) -> dict[str, Any]:
    """The text as plain data; an empty text is an empty mapping.

    Raises:
        RecipeError: It is not YAML (the message names the line), or not a mapping.
    """
    data = parse_yaml(text, "recipe")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RecipeError("recipe: it is not a mapping", hint="a recipe starts with `name:` and `model:`")
    return data


def _checked(edited: str | None, wanted: dict[str, Any]) -> str:
    """The edited text if it says what was wanted; else the recipe, written from the data."""
    try:
        if edited is not None and mapping(edited) == wanted:
            return edited
    except RecipeError:
        pass
    return write_yaml(wanted)


def _with_value(text: str, keys: Sequence[str], value: Any, order: Sequence[str]) -> str | None:
    place: Any = compose_yaml(text)
    if place is None:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{keys[0]}: {_flow(_nested(keys[1:], value))}\n"
    deepest = None
    for depth, key in enumerate(keys):
        if not isinstance(place, yaml.MappingNode):  # a section that has no keys yet
            return None if deepest is None else _replace(text, deepest, place, _flow(_nested(keys[depth:], value)))
        pair = _find(place, key)
        if pair is None:
            return _insert(text, place, key, _flow(_nested(keys[depth + 1 :], value)), _behind(keys, depth, order))
        deepest, place = pair
    return None if deepest is None else _replace(text, deepest, place, _flow(value))


def _without(text: str, keys: Sequence[str]) -> str | None:
    place: Any = compose_yaml(text)
    for key in keys[:-1]:
        pair = _find(place, key)
        if pair is None:
            return None
        place = pair[1]
    pair = _find(place, keys[-1])
    if pair is None:
        return None
    key_node, node = pair
    if place.flow_style:
        at = place.value.index(pair)
        if at + 1 < len(place.value):
            return text[: key_node.start_mark.index] + text[place.value[at + 1][0].start_mark.index :]
        begin = place.value[at - 1][1].end_mark.index if at else key_node.start_mark.index
        return text[:begin] + text[node.end_mark.index :]
    begin = text.rfind("\n", 0, key_node.start_mark.index) + 1
    end = text.find("\n", _end(node))
    return text[:begin] + (text[end + 1 :] if end >= 0 else "")


def _find(node: Any, key: str) -> tuple[Any, Any] | None:
    return next((p for p in node.value if p[0].value == key), None) if isinstance(node, yaml.MappingNode) else None


def _replace(text: str, key: Any, node: Any, value: str) -> str:
    begin, end = node.start_mark.index, node.end_mark.index
    block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if block or begin == end:  # what begins on lines of its own, and what is not there, follow the colon
        end = max(_end(node), key.end_mark.index) if block else end
        begin = text.index(":", key.end_mark.index) + 1
        return f"{text[:begin]} {value}{text[max(end, begin) :]}"
    return text[:begin] + value + text[end:]


def _behind(keys: Sequence[str], depth: int, order: Sequence[str]) -> set[str]:
    """The neighbours of a key that come after it in this order."""
    path = ".".join(keys)
    later = [p.split(".") for p in order[order.index(path) + 1 :]] if path in order else []
    return {p[depth] for p in later if p[:depth] == list(keys[:depth]) and len(p) > depth} - {keys[depth]}


def _insert(text: str, place: Any, key: str, value: str, behind: set[str]) -> str:
    before = next((k for k, _ in place.value if k.value in behind), None)
    if before is not None:
        at, column = before.start_mark.index, before.start_mark.column
        between = ", " if place.flow_style else "\n" + " " * column
        return f"{text[:at]}{key}: {value}{between}{text[at:]}"
    if place.flow_style:
        end = place.end_mark.index - 1
        until = text[:end].rstrip()
        return f"{until}{'' if until.endswith(('{', ',')) else ', '}{key}: {value}{text[end:]}"
    indent = " " * place.value[0][0].start_mark.column
    last_key, last = place.value[-1]
    at = max(_end(last), last_key.end_mark.index)
    line_end = text.find("\n", at)
    if line_end < 0:
        return f"{text}\n{indent}{key}: {value}\n"
    return f"{text[:line_end]}\n{indent}{key}: {value}{text[line_end:]}"


def _end(node: Any) -> int:
    """Where a node's own text ends; a block's end mark lies behind the blank lines and comments after it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        if isinstance(last, tuple):
            return max(_end(last[1]), int(last[0].end_mark.index))
        return _end(last)
    return int(node.end_mark.index)


def _nested(keys: Sequence[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _flow(value: Any) -> str:
    """A value on one line, quoted where a flow mapping needs it."""
    return write_yaml([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
