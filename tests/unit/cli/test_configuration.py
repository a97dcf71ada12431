"""Settings from file, environment and command line: each source, their order, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from stateroom.cli.configuration import BadSetting, load, load_settings, variables
from stateroom.settings import Settings

LINK_VARIABLES = {
    "STATEROOM_SERVICE_HOST": "10.0.0.1",
    "STATEROOM_SERVICE_PORT": "8000",
    "STATEROOM_SERVICE_PORT_HTTP": "8000",
    "STATEROOM_PORT": "tcp://10.0.0.1:8000",
    "STATEROOM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "STATEROOM_PORT_8000_TCP_ADDR": "10.0.0.1",
}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "stateroom.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def complaint(config: Path | None = None, environ: dict[str, str] | None = None, **overrides: Any) -> str:
    with pytest.raises(BadSetting) as caught:
        load_settings(config, environ or {}, overrides)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings(None, {}, {}) == Settings()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default() -> None:
    file = write('port = 1\nhost = "::1"\ndata = "a"\ndurability = "full"')
    environ = {"STATEROOM_PORT": "2", "STATEROOM_HOST": "127.0.0.2", "STATEROOM_DATA": "b"}
    settings = load_settings(file, environ, {"port": 3, "host": "127.0.0.3", "data": None})
    assert (settings.port, settings.host, settings.data, settings.durability) == (3, "127.0.0.3", "b", "full")
    assert settings.log_level == Settings().log_level


def test_one_key_of_a_table_can_be_overridden_alone() -> None:
    file = write("[limits]\nruns = 5\nsteps = 6")
    limits = load_settings(file, {"STATEROOM_LIMITS__RUNS": "7"}, {}).limits
    assert (limits.runs, limits.steps, limits.items) == (7, 6, Settings().limits.items)


def test_stateroom_toml_of_the_working_directory_is_read_unless_another_file_is_named() -> None:
    write("port = 1")
    other = write("port = 2", "other.toml")
    assert load_settings(None, {}, {}).port == 1
    assert load_settings(None, {"STATEROOM_CONFIG": str(other)}, {}).port == 2
    assert load_settings(other, {"STATEROOM_CONFIG": "missing.toml"}, {}).port == 2


OF_A_SERVER = [("embeddings", name) for name in ("url", "key_env", "models")]
"""Settings that go together, and are looked at more closely: they have a test of their own."""


def leaves() -> list[tuple[str, tuple[str, ...]]]:
    others = [("backends",), ("projects",), ("policy",), *OF_A_SERVER]
    return sorted((name, path) for name, path in variables().items() if path not in others)


def other_value(kind: inspect.Type, default: Any) -> Any:
    """A valid value that is not the default."""
    match kind:
        case inspect.LiteralType(values=values):
            return next(value for value in values if value != default)
        case inspect.BoolType():
            return not default
        case inspect.StrType():
            return f"{default}x"
        case inspect.VarTupleType():
            return ("https://a.example", "https://b.example")
        case _:
            return default + 1


def leaf(settings: Any, path: tuple[str, ...]) -> tuple[Any, inspect.Type]:
    for name in path[:-1]:
        settings = getattr(settings, name)
    info = inspect.type_info(type(settings))
    assert isinstance(info, inspect.StructType)
    kind = next(field.type for field in info.fields if field.name == path[-1])
    return getattr(settings, path[-1]), kind


@pytest.mark.parametrize(("variable", "path"), leaves())
def test_every_setting_can_be_set_by_its_environment_variable(variable: str, path: tuple[str, ...]) -> None:
    value = other_value(leaf(Settings(), path)[1], leaf(Settings(), path)[0])
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, tuple):
        text = ",".join(value)
    loaded = load(None, {variable: text}, {})
    assert leaf(loaded.settings, path)[0] == value
    assert loaded.sources == {".".join(path): variable}


def test_every_setting_can_be_set_in_the_file() -> None:
    def toml(struct: Any, prefix: str) -> str:
        lines, tables = [], []
        for field in inspect.type_info(type(struct)).fields:  # type: ignore[attr-defined]  # it is a StructType
            default = getattr(struct, field.name)
            if isinstance(field.type, inspect.StructType):
                name = f"{prefix}.{field.name}" if prefix else field.name
                tables.append(f"[{name}]\n{toml(default, name)}")
            elif field.name not in ("backends", "projects", "policy") and (prefix, field.name) not in OF_A_SERVER:
                lines.append(f"{field.name} = {msgspec.json.encode(other_value(field.type, default)).decode()}")
        return "\n".join([*lines, *tables])

    settings = load_settings(write(toml(Settings(), "")), {}, {})
    for _, path in leaves():
        default, kind = leaf(Settings(), path)
        assert leaf(settings, path)[0] == other_value(kind, default), path


def test_rules_come_as_tables_or_as_json_and_a_wrong_one_is_named() -> None:
    (rule,) = load_settings(write('[[policy]]\ndecision = "ask"\ntool = "shell"\n'), {}, {}).policy
    assert (rule.decision, rule.tool) == ("ask", "shell")
    (other,) = load_settings(None, {"STATEROOM_POLICY": '[{"decision":"deny"}]'}, {}).policy
    assert (other.decision, other.tool) == ("deny", "*")
    assert "perhaps" in complaint(write('[[policy]]\ndecision = "perhaps"\n', "b.toml"))
    assert "rule 1" in complaint(write('[[policy]]\ndecision = "deny"\narguments = "("\n', "c.toml"))
    assert "unknown field `tol`" in complaint(write('[[policy]]\ndecision = "deny"\ntol = "x"\n', "d.toml"))


def test_backends_come_as_urls_or_as_tables_from_every_source() -> None:
    file = write('[[backends]]\nurl = "http://a/v1/"\ntools = "emulate"\nmodels = ["m"]\n')
    (backend,) = load_settings(file, {}, {}).backends
    assert (backend.url, backend.tools, backend.models) == ("http://a/v1", "emulate", ("m",))
    assert [b.url for b in load_settings(write('backends = ["http://a/v1"]'), {}, {}).backends] == ["http://a/v1"]
    two = load_settings(None, {"STATEROOM_BACKENDS": "http://b/v1, http://c:9/v1"}, {}).backends
    assert [b.url for b in two] == ["http://b/v1", "http://c:9/v1"]
    (full,) = load_settings(None, {"STATEROOM_BACKENDS": '[{"url": "http://d/v1", "retries": 0}]'}, {}).backends
    assert (full.url, full.retries) == ("http://d/v1", 0)
    assert [b.url for b in load_settings(file, {}, {"backends": ["http://e/v1"]}).backends] == ["http://e/v1"]
    assert [b.url for b in load_settings(None, {"STATEROOM_BACKEND": "http://f/v1"}, {}).backends] == ["http://f/v1"]


def test_a_server_for_embeddings_has_a_url_and_may_have_models_and_a_key() -> None:
    environ = {"STATEROOM_EMBEDDINGS__URL": "http://b/v1", "STATEROOM_EMBEDDINGS__MODELS": "m, n"}
    own = load_settings(None, environ, {}).embeddings
    assert (own.url, own.models) == ("http://b/v1", ("m", "n"))
    for name, value in (("KEY_ENV", "A_KEY"), ("MODELS", "m")):
        assert "embeddings.url" in complaint(environ={f"STATEROOM_EMBEDDINGS__{name}": value})
    for url in ("nonsense", "http://user:secret@a/v1"):
        message = complaint(environ={"STATEROOM_EMBEDDINGS__URL": url})
        assert "STATEROOM_EMBEDDINGS__URL" in message
        assert "secret" not in message
    message = complaint(environ={**environ, "STATEROOM_EMBEDDINGS__KEY_ENV": "sk-it is this"})
    assert "the NAME of an environment variable" in message
    assert "sk-" not in message
    file = write('[embeddings]\nurl = "http://a/v1/"\nkey_env = "A_KEY"\nmodels = ["m"]\n')
    own = load_settings(file, {"A_KEY": "secret"}, {}).embeddings
    assert (own.url, own.key_env, own.models) == ("http://a/v1", "A_KEY", ("m",))
    assert "A_KEY" in complaint(file)


def test_a_project_has_what_its_table_says_over_what_holds_for_all() -> None:
    file = write("[project]\nruns = 5\nrequests_per_minute = 60\n[projects.shop]\nruns = 9\n[projects.bar-2]\n")
    settings = load_settings(file, {}, {})
    assert (settings.project.runs, settings.project.requests_per_minute) == (5, 60)
    assert (settings.projects["shop"].runs, settings.projects["shop"].requests_per_minute) == (9, 60)
    assert settings.projects["bar-2"] == settings.project
    given = {"STATEROOM_PROJECTS": '{"shop": {"tokens_per_minute": 7}}', "STATEROOM_PROJECT__RUNS": "3"}
    shop = load_settings(None, given, {}).projects["shop"]
    assert (shop.tokens_per_minute, shop.runs) == (7, 3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("projects = 3", "projects"),
        ("projects.shop = 3", "projects.shop"),
        ("[projects.shop]\nrunz = 3", "runs"),
        ("[projects.shop]\nruns = -1", "projects.shop"),
        ('[projects."a b"]\nruns = 1', "name"),
        ('cors_origins = ["app.example"]', "https://app.example"),
        ('cors_origins = ["https://app.example/path"]', "cors_origins"),
    ],
)
def test_what_is_wrong_with_projects_and_origins_is_named(text: str, named: str) -> None:
    with pytest.raises(BadSetting, match=named):
        load_settings(write(text), {}, {})


def test_the_name_of_the_key_variable_goes_to_every_backend_of_the_command_line() -> None:
    environ = {"KEY": "secret", "STATEROOM_BACKENDS": "http://a/v1,http://b/v1", "STATEROOM_BACKEND_KEY_ENV": "KEY"}
    assert [b.key_env for b in load_settings(None, environ, {}).backends] == ["KEY", "KEY"]
    (one,) = load_settings(None, {"KEY": "secret"}, {"backends": ["http://a/v1"], "backend_key_env": "KEY"}).backends
    assert one.key_env == "KEY"


def test_a_key_variable_without_a_backend_or_beside_tables_is_refused() -> None:
    assert "--backend URL" in complaint(backend_key_env="KEY")
    file = write('[[backends]]\nurl = "http://a/v1"')
    assert "key_env for each" in complaint(file, {"KEY": "x", "STATEROOM_BACKEND_KEY_ENV": "KEY"})


def test_a_key_variable_that_is_not_set_is_named() -> None:
    assert "MY_KEY" in complaint(backends=["http://a/v1"], backend_key_env="MY_KEY")


@pytest.mark.parametrize("key", ["sk-proj-123", "sk_live_123"])
def test_a_key_given_in_place_of_its_name_is_not_repeated(key: str) -> None:
    message = complaint(environ={"STATEROOM_BACKENDS": "http://a/v1", "STATEROOM_BACKEND_KEY_ENV": key})
    assert key not in message


def test_a_url_with_a_password_is_refused_and_not_repeated() -> None:
    message = complaint(backends=["http://user:hunter2@a/v1"])
    assert "hunter2" not in message
    assert "--backend-key-env" in message


@pytest.mark.parametrize("url", ["a:9001", "ftp://a/v1", "http://", "http://a:99999/v1", "http://a/v1?x=1", "nonsense"])
def test_what_is_not_a_base_url_is_refused(url: str) -> None:
    assert "--backend" in complaint(backends=[url])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", "Did you mean port?"),
        ("zebra = 1", "Known keys:"),
        ("[limits]\nrun = 1", "Did you mean limits.runs?"),
        ("limits = 3", "a table"),
        ('durability = "fast"', "normal"),
        ('port = "8000"', "whole number from 0 to 65535"),
        ("port = 70000", "whole number from 0 to 65535"),
        ("shutdown_seconds = nan", "a number"),
        ("shutdown_seconds = inf", "a number"),
        ("allow_private_addresses = 1", "true or false"),
        ("[limits]\nruns = 0", "at least 1"),
        ('data = ""', "a directory"),
        ("backends = 3", "a list"),
        ("backends = [3]", "a URL or a table"),
        ('[[backends]]\nname = "a"', "url is missing"),
        ('[[backends]]\nurl = "http://a/v1"\ntool = "native"', "Did you mean tools?"),
        ('[[backends]]\nurl = "http://a/v1"\nmodels = "m"', "a list of texts"),
        ('[[backends]]\nurl = "http://a/v1"\nidle_timeout_seconds = 0', "above 0"),
        ("port = ", "not valid TOML"),
        ("port = 1\nport = 2", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file_and_what_is_allowed(text: str, expected: str) -> None:
    message = complaint(write(text))
    assert "stateroom.toml" in message
    assert expected in message


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("STATEROOM_PORT", "eight", "whole number"),
        ("STATEROOM_DURABILITY", "fast", "normal"),
        ("STATEROOM_LIMITS__RUN", "1", "Did you mean STATEROOM_LIMITS__RUNS?"),
        ("STATEROOM_DATADIR", "x", "Did you mean STATEROOM_DATA?"),
        ("STATEROOM_ZEBRA", "x", "settings.md"),
        ("STATEROOM_ALLOW_PRIVATE_ADDRESSES", "perhaps", "true or false"),
        ("STATEROOM_BACKENDS", "[1", "JSON"),
    ],
)
def test_a_mistake_in_the_environment_is_named_with_its_variable(variable: str, value: str, expected: str) -> None:
    message = complaint(environ={variable: value})
    assert variable in message
    assert expected in message


def test_two_names_of_one_setting_are_refused() -> None:
    assert "set one" in complaint(environ={"STATEROOM_BACKEND": "http://a/v1", "STATEROOM_BACKENDS": "http://b/v1"})


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load_settings(None, {"STATEROOM_PORT": "", "STATEROOM_DATA": ""}, {}) == Settings()


def test_variables_that_kubernetes_sets_for_a_service_called_stateroom_are_not_settings() -> None:
    assert load_settings(None, LINK_VARIABLES, {}) == Settings()


def test_variables_of_the_client_commands_are_not_settings() -> None:
    environ = {"STATEROOM_URL": "http://x/v1", "STATEROOM_API_KEY": "k", "STATEROOM_MODEL": "m"}
    assert load_settings(None, environ, {}) == Settings()


def test_a_file_that_is_missing_or_unreadable_is_named(empty_directory: Path) -> None:
    assert "missing.toml" in complaint(Path("missing.toml"))
    assert str(empty_directory) in complaint(empty_directory)
    Path("latin.toml").write_bytes(b'data = "\xff"')
    assert "latin.toml" in complaint(Path("latin.toml"))


def test_a_tilde_stands_for_the_home_directory() -> None:
    settings = load_settings(None, {"STATEROOM_EMBEDDED__CACHE_DIR": "~/c"}, {"data": "~/d"})
    assert settings.data == str(Path.home() / "d")
    assert settings.embedded.cache_dir == str(Path.home() / "c")
