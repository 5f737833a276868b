"""Classes that a configuration names by `_target_`, perhaps the user's own."""

import importlib
import inspect
from typing import Any

from lstmlab.schema import Target


def load_target(key: str, settings: Target, base: type, positional: int = 0) -> type:
    """Import the class of `settings`; its arguments are those of the configuration after `positional` others.

    Raises ValueError, in one sentence, if there is no such class, if it is no subclass of `base`, or if it
    does not take these arguments.
    """
    module, _, name = settings.target.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}._target_={settings.target} cannot be imported: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ValueError(f"{key}._target_={settings.target} must be a subclass of {base.__name__}")
    try:
        inspect.signature(loaded).bind(*[None] * positional, **settings.arguments())
    except TypeError as error:
        raise ValueError(f"{key} does not fit {settings.target}: {error}") from None
    return loaded


def build_target(key: str, settings: Target, base: type, *positional: Any, **more: Any) -> Any:
    """An instance of the class of `settings`. Raises what `load_target` raises."""
    loaded = load_target(key, settings, base, len(positional))
    return loaded(*positional, **settings.arguments(), **more)
