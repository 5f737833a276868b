"""JSON schemas of the files in conf/, for editors: `python -m lstmlab.json_schema` writes conf/schemas/.

Types and ranges come from lstmlab.schema, descriptions from the comments in conf/. A file may omit any key,
and may hold `${…}` or `???` instead of any value but a name.
"""

import json
from functools import cache
from typing import Any

import yaml

from lstmlab.help import CONF, find_package, read_comments, walk_keys
from lstmlab.schema import COMMANDS, OpenTarget, TrainConfig

Schema = dict[str, Any]
GROUPS = [name for name in TrainConfig.model_fields if (CONF / name).is_dir()]
INTERPOLATION = {"type": "string", "pattern": r"\$\{|^\?{3}$"}
KEYWORDS = {"type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
KEYWORDS |= {"minItems", "maxItems"}


@cache
def read_conf() -> tuple[dict[str, str], dict[str, str]]:
    """Read conf/: the comments by PATH and by FILE/PATH, and the `_target_` of each path that has one."""
    comments: dict[str, str] = {}
    targets: dict[str, str] = {}
    for file in sorted(
        CONF.rglob("*.yaml"), key=lambda file: (file.parent.name not in GROUPS, file.stem != "train", file)
    ):
        for path, _, value in walk_keys(yaml.compose(file.read_text(encoding="utf-8")), find_package(file)):
            if path.endswith("._target_"):
                targets.setdefault(path.removesuffix("._target_"), value.value)
        # The comments of recipes explain values, not keys
        if file.parent.name not in ("debug", "experiment", "sweep"):
            for path, comment in read_comments(file).items():
                comments.setdefault(path, comment)
                comments[f"{file.stem}/{path}"] = comment
    return comments, targets


def unite(members: list[Schema]) -> Schema:
    """The union of `members`. A scalar or a list may also be an interpolation."""
    objects = [member for member in members if member.get("type") == "object"]
    values = [member for member in members if member not in objects]
    # Otherwise the class with any keys would accept what another one refuses
    if len(objects) > 1:
        objects = [
            one | {"required": ["_target_"]} if one["additionalProperties"] else one for one in objects
        ]
    if values and not any(value in ({}, {"type": "string"}) or "const" in value for value in values):
        values.append(INTERPOLATION)
    joined = [*objects, *values]
    return dict(joined[0]) if len(joined) == 1 else {"anyOf": joined}


def list_members(classes: Schema, node: Schema, path: str, file: str) -> list[Schema]:
    """What pydantic's `node` allows for the key `path` of `file`: one schema for each member of a union."""
    node = classes[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    if union := node.get("anyOf", node.get("oneOf")):
        return [member for one in union for member in list_members(classes, one, path, file)]
    if node.get("type") == "object":
        return [describe_object(classes, node, path, file)]
    items = {"items": unite(list_members(classes, node["items"], path, file))} if "items" in node else {}
    return [{word: node[word] for word in node if word in KEYWORDS} | items]


def select_class(members: list[Schema], target: str) -> list[Schema]:
    """`members`, with only one class: the one with this `_target_`, or the one that takes any keys."""
    consts = [one.get("properties", {}).get("_target_", {}).get("const") for one in members]
    chosen = target if target in consts else None
    return [
        one for one, const in zip(members, consts, strict=True) if const == chosen or "properties" not in one
    ]


def describe_object(classes: Schema, node: Schema, path: str, file: str) -> Schema:
    """The schema of a class with its keys, or of a mapping with the keys that conf/ has."""
    comments, targets = read_conf()
    keys, other_keys = node.get("properties", {}), node["additionalProperties"]
    file = keys.get("name", {}).get("const", file)  # comments on the keys are in its own file
    if named := node.get("propertyNames", {}).get("enum"):
        keys, other_keys = dict.fromkeys(named, other_keys), False
    # Callbacks and loggers by name, or the arguments of one
    elif other_keys or (other_keys == {} and "." in path):
        inside = [known.rpartition(".") for known in (targets if other_keys else comments)]
        keys = {key: other_keys for parent, _, key in inside if parent == path} | keys
    described: Schema = {"type": "object", "properties": {}}
    for key, value in [*keys.items(), *([("*", other_keys)] if other_keys else [])]:
        below = f"{path}.{key}".removeprefix(".")
        schema = unite(select_class(list_members(classes, value, below, file), targets.get(below, "")))
        comment = comments.get(f"{file}/{below}", comments.get(below) if file in ("", "bench") else None)
        described["properties"][key] = schema | ({"description": comment} if comment else {})
    rest = described["properties"].pop("*", other_keys == {})
    return described | {"additionalProperties": rest}


def build_schemas() -> dict[str, Schema]:
    """The schemas by name: one for each group and one for each command."""
    defaults: Schema = {"defaults": {"type": "array"}}
    train = TrainConfig.model_json_schema()
    found = {group: list_members(train["$defs"], train["properties"][group], group, "") for group in GROUPS}
    found["sweeper"] = list_members({}, OpenTarget.model_json_schema(), "hydra.sweeper", "")
    for command, config in COMMANDS.items():
        if (CONF / f"{command}.yaml").exists():
            whole = config.model_json_schema()
            found[command] = list_members(whole.get("$defs", {}), whole, "", command)
            found[command][0]["properties"]["hydra"] = {"type": "object"}
        if issubclass(config, TrainConfig):
            groups = {group: {"$ref": f"{group}.json", "not": {"required": [*defaults]}} for group in GROUPS}
            found[command][0]["properties"] |= groups
    for members in found.values():
        for member in members:
            member["properties"] |= defaults
    return {name: unite(members) for name, members in found.items()}


def format_json(node: Any, indent: str = "\n") -> str:
    """Like json.dumps, but with everything on one line that fits on it."""
    line = json.dumps(node, ensure_ascii=False)
    if len(indent + line) <= 120 or not isinstance(node, dict | list):
        return line
    deeper = indent + " "
    if isinstance(node, list):
        return "[" + ",".join(deeper + format_json(one, deeper) for one in node) + indent + "]"
    lines = [f"{deeper}{json.dumps(key)}: {format_json(one, deeper)}" for key, one in node.items()]
    return "{" + ",".join(lines) + indent + "}"


if __name__ == "__main__":
    for name, schema in build_schemas().items():
        (CONF / f"schemas/{name}.json").write_text(format_json(schema) + "\n", encoding="utf-8")
