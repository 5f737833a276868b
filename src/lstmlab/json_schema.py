"""JSON schemas of the files in conf/, for editors: `python -m lstmlab.json_schema` writes conf/schemas/.

Types and ranges come from lstmlab.schema, descriptions from the comments in conf/. A file may leave out any
key, and may hold `${…}` or `???` in place of any value but a name.
"""

import json
from functools import cache
from typing import Any

import yaml

from lstmlab.help import CONF, find_package, read_comments, walk_keys
from lstmlab.schema import COMMANDS, OpenTarget, TrainConfig

Schema = dict[str, Any]
GROUPS = [name for name in TrainConfig.model_fields if (CONF / name).is_dir()]
FILLED_LATER = {"type": "string", "pattern": r"\$\{|^\?{3}$"}
WORDS = {"type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
WORDS |= {"minItems", "maxItems"}


@cache
def read_conf() -> tuple[dict[str, str], dict[str, str]]:
    """The comments by PATH and by FILE/PATH, and the `_target_` of each path that has one."""
    comments: dict[str, str] = {}
    targets: dict[str, str] = {}
    for file in sorted(
        CONF.rglob("*.yaml"), key=lambda file: (file.parent.name not in GROUPS, file.stem != "train", file)
    ):
        for path, _, value in walk_keys(yaml.compose(file.read_text(encoding="utf-8")), find_package(file)):
            if path.endswith("._target_"):
                targets.setdefault(path.removesuffix("._target_"), value.value)
        if file.parent.name not in ("debug", "experiment", "sweep"):  # these explain values, not keys
            for path, comment in read_comments(file).items():
                comments.setdefault(path, comment)
                comments[f"{file.stem}/{path}"] = comment
    return comments, targets


def join(members: list[Schema]) -> Schema:
    """The union of `members`. If one of them is a value, it may be filled in later."""
    objects = [member for member in members if member.get("type") == "object"]
    values = [member for member in members if member not in objects]
    if len(objects) > 1:  # else the open one would take what another refuses
        objects = [
            one | {"required": ["_target_"]} if one["additionalProperties"] else one for one in objects
        ]
    if values and not any(value in ({}, {"type": "string"}) or "const" in value for value in values):
        values.append(FILLED_LATER)
    joined = [*objects, *values]
    return dict(joined[0]) if len(joined) == 1 else {"anyOf": joined}


def list_members(classes: Schema, node: Schema, path: str, file: str) -> list[Schema]:
    """What pydantic's `node` allows for the key `path` of `file`, member by member if it is a union."""
    node = classes[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    if union := node.get("anyOf", node.get("oneOf")):
        return [member for one in union for member in list_members(classes, one, path, file)]
    if node.get("type") == "object":
        return [describe_object(classes, node, path, file)]
    items = {"items": join(list_members(classes, node["items"], path, file))} if "items" in node else {}
    return [{word: node[word] for word in node if word in WORDS} | items]


def select_class(members: list[Schema], target: str) -> list[Schema]:
    """Of the classes among `members` only the one with this `_target_`, or else the open one."""
    consts = [one.get("properties", {}).get("_target_", {}).get("const") for one in members]
    chosen = target if target in consts else None
    return [
        one for one, const in zip(members, consts, strict=True) if const == chosen or "properties" not in one
    ]


def describe_object(classes: Schema, node: Schema, path: str, file: str) -> Schema:
    """A class with its keys, or a mapping with those in conf/, each of the class its `_target_` names."""
    comments, targets = read_conf()
    keys, others = node.get("properties", {}), node["additionalProperties"]
    file = keys.get("name", {}).get("const", file)  # an option explains its own keys
    if named := node.get("propertyNames", {}).get("enum"):
        keys, others = dict.fromkeys(named, others), False
    elif others or (others == {} and "." in path):  # callbacks and loggers; the arguments of one
        inside = [known.rpartition(".") for known in (targets if others else comments)]
        keys = {key: others for parent, _, key in inside if parent == path} | keys
    described: Schema = {"type": "object", "properties": {}}
    for key, value in [*keys.items(), *([("*", others)] if others else [])]:
        below = f"{path}.{key}".removeprefix(".")
        schema = join(select_class(list_members(classes, value, below, file), targets.get(below, "")))
        comment = comments.get(f"{file}/{below}", comments.get(below) if file in ("", "bench") else None)
        described["properties"][key] = schema | ({"description": comment} if comment else {})
    rest = described["properties"].pop("*", others == {})
    return described | {"additionalProperties": rest}


def build_schemas() -> dict[str, Schema]:
    """The schemas by name: one for the files of each group, one for the file of each command."""
    more: Schema = {"defaults": {"type": "array"}}
    train = TrainConfig.model_json_schema()
    found = {group: list_members(train["$defs"], train["properties"][group], group, "") for group in GROUPS}
    found["sweeper"] = list_members({}, OpenTarget.model_json_schema(), "hydra.sweeper", "")
    for command, config in COMMANDS.items():
        if (CONF / f"{command}.yaml").exists():
            whole = config.model_json_schema()
            found[command] = list_members(whole.get("$defs", {}), whole, "", command)
            found[command][0]["properties"]["hydra"] = {"type": "object"}
        if issubclass(config, TrainConfig):
            groups = {group: {"$ref": f"{group}.json", "not": {"required": [*more]}} for group in GROUPS}
            found[command][0]["properties"] |= groups
    for members in found.values():
        for member in members:
            member["properties"] |= more
    return {name: join(members) for name, members in found.items()}


def format_json(node: Any, indent: str = "\n") -> str:
    """As json.dumps, but what fits on a line stands on one."""
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
