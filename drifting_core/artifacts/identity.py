"""What a configuration is hashed by: sections, their identity and their operations, slices put together, digests.

Each field of a section is either *identity* (it changes the result) or an *operation* (`operation(...)`: devices, horizon,
logging; never hashed). Fields at their default are left out of the hash, so that a field added later renames no old run.
Light.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def operation(default: Any = ..., description: str = "", **constraints: Any) -> Any:
    """A field that says how or how long the work is done, not what comes out: it is in no hash."""
    return Field(default, description=description, json_schema_extra={"role": "operation"}, **constraints)


def is_operation(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, Mapping) and extra.get("role") == "operation"


def identity(section: Section) -> dict[str, Any]:
    """The section's identity fields that are not at their default, as plain JSON values."""
    chosen = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if is_operation(field) or (not field.is_required() and value == default):
            continue
        chosen[name] = _plain(value)
    return json.loads(json.dumps(chosen))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return identity(value) if isinstance(value, Section) else value


def operations(section: Section) -> dict[str, Any]:
    """The section's operation fields (nested ones included), as plain JSON values: the complement of `identity`."""
    chosen = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if is_operation(field):
            chosen[name] = value.model_dump() if isinstance(value, Section) else value
        elif isinstance(value, Section) and (nested := operations(value)):
            chosen[name] = nested
    return json.loads(json.dumps(chosen))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings put together; where both have a value, that of `above`."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
