"""Settings from their four sources: command line over environment over TOML file over defaults.

It names, in every complaint, the key, the place it came from and what would be allowed. It starts nothing and checks
nothing outside of its input: whether a directory or a model server is there is for `stateroom doctor`.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect

from stateroom.cli.failure import USAGE, CommandFailed
from stateroom.settings import (
    PROJECT_NAME,
    PROJECT_RULE,
    BackendSettings,
    EmbeddingsSettings,
    PolicyRule,
    ProjectSettings,
    Settings,
)

DEFAULT_FILE = "stateroom.toml"
PREFIX = "STATEROOM_"
CLIENT_VARIABLES = frozenset({"STATEROOM_CONFIG", "STATEROOM_URL", "STATEROOM_API_KEY", "STATEROOM_MODEL"})
"""Variables that are read elsewhere than in the settings."""

_KEY_ENV = "backend_key_env"
_ALIASES = {"backend": "backends"}
_SERVICE_LINK = re.compile(r"_SERVICE_HOST\Z|_SERVICE_PORT(_\w+)?\Z|_PORT_\d+_(TCP|UDP)(_\w+)?\Z")
_ADDRESS = re.compile(r"(tcp|udp)://")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+/?", re.IGNORECASE)
_PROJECTS_EXAMPLE = '{"shop": {"runs": 4}}'
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

KeyPath: TypeAlias = tuple[str, ...]


class BadSetting(CommandFailed):
    """A setting that cannot be used; the message says where it came from and what is allowed."""

    exit_code = USAGE


class Given(NamedTuple):
    """A value as an operator wrote it, and where."""

    value: Any
    origin: str
    text: bool = False
    """It came as text, so that "8000" is a number."""


class Loaded(NamedTuple):
    settings: Settings
    sources: dict[str, str]
    """For each key that was set (such as `limits.runs`): where."""


def load_settings(config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """The settings; raises BadSetting.

    `config` None: the file named by STATEROOM_CONFIG, else stateroom.toml in the working directory if there is one.
    `overrides` holds what the command line gave, by key: host, port, data, backends, backend_key_env (None: not given).
    """
    return load(config, environ, overrides).settings


def load(config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Loaded:
    """The settings, with the place that each of them came from."""
    given: dict[KeyPath, Given] = {}
    given.update(_from_file(_file(config, environ)))
    given.update(_from_environment(environ))
    given.update(_from_options(overrides))
    key_env = given.pop((_KEY_ENV,), None)
    named = given.pop(("backends",), None)
    own = given.pop(("projects",), None)
    backends = _backends(named, key_env)
    values = _build(Settings, given)
    _expand(values, "data", given.get(("data",)))
    _expand(values["embedded"], "cache_dir", given.get(("embedded", "cache_dir")))
    _check_embeddings(values["embeddings"], given)
    _check_origins(values, given.get(("cors_origins",)))
    projects = _projects(own, values["project"])
    settings = msgspec.convert({**values, "backends": backends, "projects": projects}, Settings)
    _check_keys([*settings.backends, settings.embeddings], environ)
    _check_policy(settings.policy, given.get(("policy",)))
    sources = {".".join(path): value.origin for path, value in given.items()}
    sources |= {name: value.origin for name, value in _apart(named, key_env, own) if value is not None}
    return Loaded(settings, sources)


def _apart(named: Given | None, key_env: Given | None, own: Given | None) -> tuple[tuple[str, Given | None], ...]:
    return ("backends", named), (_KEY_ENV, key_env), ("projects", own)


# -- sources ----------------------------------------------------------------------------------------------------------


def _file(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    if config is not None:
        return config
    if named := environ.get("STATEROOM_CONFIG"):
        return Path(named)
    return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).is_file() else None


def _from_file(path: Path | None) -> dict[KeyPath, Given]:
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadSetting(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"The configuration file {path} cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise BadSetting(f"{path} is not valid TOML: {error}.") from None
    return dict(_flatten(Settings, table, str(path), ()))


def _flatten(struct: Any, table: Mapping[str, Any], file: str, above: KeyPath) -> Iterable[tuple[KeyPath, Given]]:
    fields = _fields(struct)
    for name, value in table.items():
        path = (*above, name)
        origin = f"{file}: {'.'.join(path)}"
        if name not in fields:
            raise _unknown(origin, name, fields, above)
        kind = fields[name].type
        if not isinstance(kind, inspect.StructType):
            yield path, Given(value, origin)
        elif isinstance(value, dict):
            yield from _flatten(kind.cls, value, file, path)
        else:
            raise BadSetting(f"{origin}: expected a table with keys such as {', '.join(list(_fields(kind.cls))[:3])}.")


def _from_environment(environ: Mapping[str, str]) -> dict[KeyPath, Given]:
    known = {**variables(), f"{PREFIX}BACKEND": ("backends",), f"{PREFIX}BACKEND_KEY_ENV": (_KEY_ENV,)}
    found: dict[KeyPath, Given] = {}
    for name in sorted(environ):
        value = environ[name]
        if not name.startswith(PREFIX) or name in CLIENT_VARIABLES or value == "" or _is_foreign(name, value):
            continue
        if name not in known:
            near = difflib.get_close_matches(name[len(PREFIX) :], [key[len(PREFIX) :] for key in known], 1, 0.6)
            hint = (
                f" Did you mean {PREFIX}{near[0]}?" if near else " The names are listed in docs/reference/settings.md."
            )
            raise BadSetting(f"The environment variable {name} is not a setting of Stateroom.{hint}")
        if known[name] in found:
            raise BadSetting(f"{found[known[name]].origin} and {name} are the same setting; set one of them.")
        found[known[name]] = Given(value, name, text=True)
    return found


def variables() -> dict[str, KeyPath]:
    """The environment variable of every setting, such as STATEROOM_LIMITS__RUNS -> (limits, runs)."""
    return {PREFIX + "__".join(path).upper(): path for path in _paths(Settings)}


def _paths(struct: Any, above: KeyPath = ()) -> Iterable[KeyPath]:
    """The place of every value in a struct and the structs within it."""
    for name, field in _fields(struct).items():
        if isinstance(field.type, inspect.StructType):
            yield from _paths(field.type.cls, (*above, name))
        else:
            yield (*above, name)


def _is_foreign(name: str, value: str) -> bool:
    """Kubernetes sets STATEROOM_PORT=tcp://… and the like in every pod beside a service that is called stateroom."""
    return bool(_SERVICE_LINK.search(name) or _ADDRESS.match(value)) or name.startswith(f"{PREFIX}TEST_")


def _from_options(overrides: Mapping[str, Any]) -> dict[KeyPath, Given]:
    given: dict[KeyPath, Given] = {}
    for name, value in overrides.items():
        key = _ALIASES.get(name, name)
        if value is None or (key == "backends" and not value):
            continue
        option = "--backend" if key == "backends" else f"--{key.replace('_', '-')}"
        given[(key,)] = Given(str(value) if isinstance(value, Path) else value, option, text=isinstance(value, str))
    return given


# -- values -----------------------------------------------------------------------------------------------------------


def _build(struct: Any, given: Mapping[KeyPath, Given], above: KeyPath = ()) -> dict[str, Any]:
    """Converted values of the struct's fields that were given, nested structs as dicts."""
    values: dict[str, Any] = {}
    for name, field in _fields(struct).items():
        path = (*above, name)
        if isinstance(field.type, inspect.StructType):
            values[name] = _build(field.type.cls, given, path)
        elif path in given:
            values[name] = _value(given[path], _annotations(struct)[name], field.type)
    return values


def _value(given: Given, annotation: Any, kind: inspect.Type) -> Any:
    value = _split(given) if given.text and isinstance(kind, inspect.VarTupleType) else given.value
    try:
        converted = msgspec.convert(value, annotation, strict=not given.text)
    except msgspec.ValidationError as error:
        if isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.StructType):
            raise BadSetting(f"{given.origin}: {error}.") from None
        raise BadSetting(f"{given.origin}: expected {_describe(kind)}, got {_shown(given.value)}.") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise BadSetting(f"{given.origin}: expected {_describe(kind)}, got {_shown(given.value)}.")
    return converted


def _split(given: Given) -> list[Any]:
    """A list from text: JSON when it begins with a bracket, else parted by commas."""
    text = given.value.strip()
    if not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        decoded: list[Any] = msgspec.json.decode(text, type=list[Any])
    except msgspec.DecodeError as error:
        raise BadSetting(f"{given.origin} begins like a JSON list and is none: {error}.") from None
    return decoded


def _backends(given: Given | None, key_env: Given | None) -> list[BackendSettings]:
    if given is None:
        if key_env is not None:
            raise BadSetting(f"{key_env.origin} needs a model server: give --backend URL too.")
        return []
    entries = _split(given) if given.text else given.value
    if not isinstance(entries, list | tuple):
        raise BadSetting(f"{given.origin}: expected a list of URLs or of tables with a url, got {_shown(entries)}.")
    if key_env is not None and any(isinstance(entry, dict) for entry in entries):
        raise BadSetting(f"{key_env.origin} goes with --backend URL; in {given.origin} write key_env for each of them.")
    return [_backend(entry, f"{given.origin}[{at}]", key_env) for at, entry in enumerate(entries)]


def _backend(entry: Any, origin: str, key_env: Given | None) -> BackendSettings:
    table = {"url": entry} if isinstance(entry, str) else entry
    if not isinstance(table, dict):
        raise BadSetting(f"{origin}: expected a URL or a table with a url, got {_shown(entry)}.")
    if "url" not in table:
        raise BadSetting(f"{origin}: the url is missing, such as http://host:9001/v1.")
    fields = _fields(BackendSettings)
    for name in table:
        if name not in fields:
            raise _unknown(f"{origin}.{name}", name, fields, ())
    given: dict[KeyPath, Given] = {(name,): Given(value, f"{origin}.{name}") for name, value in table.items()}
    if key_env is not None:
        given[("key_env",)] = key_env
    values = _build(BackendSettings, given)
    values["url"] = _url(values["url"], f"{origin}.url" if isinstance(entry, dict) else origin)
    _check_name(values, given.get(("key_env",)))
    return msgspec.convert(values, BackendSettings)


def _projects(given: Given | None, default: Mapping[str, Any]) -> dict[str, ProjectSettings]:
    """What each project has of its own, over what holds for all."""
    table = given.value if given is not None else {}
    origin = given.origin if given is not None else ""
    if given is not None and given.text:
        try:
            table = msgspec.json.decode(given.value)
        except msgspec.DecodeError as error:
            raise BadSetting(f"{origin}: expected JSON such as {_PROJECTS_EXAMPLE}: {error}.") from None
    if not isinstance(table, dict):
        raise BadSetting(f"{origin}: expected a table for each project, got {_shown(table)}.")
    projects: dict[str, ProjectSettings] = {}
    for name, said in table.items():
        if not PROJECT_NAME.fullmatch(name):
            raise BadSetting(f"{origin}: {_shown(name)} is no name for a project; {PROJECT_RULE}.")
        if not isinstance(said, dict):
            raise BadSetting(f"{origin}.{name}: expected a table, got {_shown(said)}.")
        own = dict(_flatten(ProjectSettings, said, f"{origin}.{name}", ()))
        projects[name] = msgspec.convert(_over(default, _build(ProjectSettings, own)), ProjectSettings)
    return projects


def _over(default: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The default values with one's own in their place, table by table."""
    merged = dict(default)
    for name, value in own.items():
        held = merged.get(name)
        merged[name] = _over(held, value) if isinstance(value, dict) and isinstance(held, dict) else value
    return merged


def _check_origins(values: Mapping[str, Any], given: Given | None) -> None:
    """An origin with a path would match nothing and look as if it did."""
    for origin in values.get("cors_origins", ()):
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            place = given.origin if given is not None else "cors_origins"
            raise BadSetting(f"{place}: expected origins such as https://app.example, got {_shown(origin)}.")


def _check_embeddings(values: dict[str, Any], given: Mapping[KeyPath, Given]) -> None:
    """Check the server for embeddings alone, if there is one."""
    if values.get("url"):
        values["url"] = _url(values["url"], given[("embeddings", "url")].origin)
    for name in ("key_env", "models"):
        if values.get(name) and not values.get("url"):
            raise BadSetting(f"{given[('embeddings', name)].origin} needs a server: set embeddings.url too.")
    _check_name(values, given.get(("embeddings", "key_env")))


def _check_policy(rules: Iterable[PolicyRule], given: Given | None) -> None:
    for number, rule in enumerate(rules, 1):
        try:
            re.compile(rule.arguments)
        except (re.error, RecursionError, OverflowError) as error:
            origin = "policy" if given is None else given.origin
            raise BadSetting(f"{origin}, rule {number}: `arguments` is no regular expression: {error}.") from None


def _check_name(values: Mapping[str, Any], given: Given | None) -> None:
    if given is not None and values["key_env"] and not _VARIABLE.match(values["key_env"]):
        raise BadSetting(
            f"{given.origin}: expected the NAME of an environment variable that holds the key, not the key itself."
        )


def _url(url: str, origin: str) -> str:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise BadSetting(f"{origin}: {_shown(url)} is not a URL.") from None
    if parts.username is not None or parts.password is not None:
        raise BadSetting(
            f"{origin}: the URL holds a user name or password; put the key into an environment variable and name it "
            "with --backend-key-env or key_env."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid or parts.query:
        raise BadSetting(f"{origin}: expected a base URL such as http://host:9001/v1, got {_shown(url)}.")
    return url.rstrip("/")


def _check_keys(backends: Iterable[BackendSettings | EmbeddingsSettings], environ: Mapping[str, str]) -> None:
    for backend in backends:
        if backend.key_env and not environ.get(backend.key_env):
            # A key pasted in the place of a name must not be printed.
            name = f" {backend.key_env}" if backend.key_env.isupper() else ""
            raise BadSetting(f"The environment variable{name} that is to hold the API key of {backend.url} is not set.")


def _expand(values: dict[str, Any], key: str, given: Given | None) -> None:
    """Let ~ stand for the home directory."""
    if given is None:
        return
    if not values[key] or "\0" in values[key]:
        raise BadSetting(f"{given.origin}: expected a directory, got {_shown(given.value)}.")
    values[key] = str(Path(values[key]).expanduser()) if values[key].startswith("~") else values[key]


# -- words ------------------------------------------------------------------------------------------------------------


def _fields(struct: Any) -> dict[str, inspect.Field]:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {field.name: field for field in info.fields}


def _annotations(struct: Any) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(struct)}


def _unknown(origin: str, name: str, known: Iterable[str], above: KeyPath) -> BadSetting:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    hint = f" Did you mean {'.'.join((*above, near[0]))}?" if near else f" Known keys: {', '.join(sorted(known))}."
    return BadSetting(f"{origin}: there is no such setting.{hint}")


def _describe(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(str(value) for value in values)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=low, le=high):
            return "a whole number" + _bounds(low, None, high)
        case inspect.FloatType(ge=low, gt=above, le=high):
            return "a number" + _bounds(low, above, high)
        case inspect.VarTupleType():
            return "a list of texts"
        case _:
            return "a text"


def _bounds(low: float | None, above: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low:g}"
    return f" above {above:g}" if above is not None else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
