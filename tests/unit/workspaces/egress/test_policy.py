"""What a request may ask of the network."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stateroom.errors import InvalidRequest
from stateroom.workspaces.egress.domains import Target, read_entry
from stateroom.workspaces.egress.policy import SECRET_MAX, make_policy, refusal_of

PARAM = "network_policy"
SECRET, TWICE = "invalid_domain_secret", "duplicate_domain_secret"


def given(domain: str = "api.test", name: str = "TOKEN", value: str = "a secret value") -> SimpleNamespace:
    return SimpleNamespace(domain=domain, name=name, value=value)


def test_a_policy_lists_its_domains_in_one_form() -> None:
    made = make_policy(["API.test.", "api.test", "*.api.test", "1.1.1.1", "api.test:8443"])
    assert made.allowed_domains == ("api.test", "*.api.test", "1.1.1.1", "api.test:8443")
    assert made.lists(Target("api.test", 443))
    assert made.lists(Target("api.test", 8443))
    assert not made.lists(Target("api.test", 8080))
    assert refusal_of(made, [read_entry("*")], Target("api.test", 8080)) == "port_not_listed"
    assert refusal_of(made, [read_entry("*")], Target("test", 80)) == "not_listed"
    assert refusal_of(made, [read_entry("*.api.test")], Target("api.test", 80)) == "operator_forbids"
    assert refusal_of(made, [read_entry("*.api.test")], Target("a.api.test", 80)) == ""


@pytest.mark.parametrize(
    ("domains", "secrets", "bounds", "code", "param"),
    [
        ([], [], ["*"], "invalid_allowed_domain", "domains"),
        (["a.test"] * 201, [], ["*"], "invalid_allowed_domain", "domains"),
        (["a.test", "*"], [], ["*"], "invalid_allowed_domain", "domains[1]"),
        (["http://a.test"], [], ["*"], "invalid_allowed_domain", "domains[0]"),
        (["127.1"], [], ["*"], "invalid_allowed_domain", "domains[0]"),
        (["a.test", "b.test"], [], ["a.test"], "domain_not_permitted", "domains[1]"),
        (["*.a.test"], [], ["x.a.test"], "domain_not_permitted", "domains[0]"),
        (["a.test:81"], [], ["a.test:80"], "domain_not_permitted", "domains[0]"),
        (["a.test"], [], [], "domain_not_permitted", "domains[0]"),
        (["a.test"], [given("b.test")], ["*"], "domain_secret_not_allowed", "secrets[0].domain"),
        (["a.test"], [given("*.a.test")], ["*"], "domain_secret_not_allowed", "secrets[0].domain"),
        (["a.test"], [given("a.test:99")], ["*"], "domain_secret_not_allowed", "secrets[0].domain"),
        (["a.test"], [given("a b")], ["*"], SECRET, "secrets[0].domain"),
        (["a.test"], [given("a.test", "1A")], ["*"], SECRET, "secrets[0].name"),
        (["a.test"], [given("a.test", "")], ["*"], SECRET, "secrets[0].name"),
        (["a.test"], [given("a.test", "A=B")], ["*"], SECRET, "secrets[0].name"),
        (["a.test"], [given("a.test", "LD_PRELOAD")], ["*"], SECRET, "secrets[0].name"),
        (["a.test"], [given("a.test", "Path")], ["*"], SECRET, "secrets[0].name"),
        (["a.test"], [given("a.test", value="")], ["*"], SECRET, "secrets[0].value"),
        (["a.test"], [given("a.test", value="a\r\nB: c")], ["*"], SECRET, "secrets[0].value"),
        (["a.test"], [given("a.test", value="ends\n")], ["*"], SECRET, "secrets[0].value"),
        (["a.test"], [given("a.test", value="x" * (SECRET_MAX + 1))], ["*"], SECRET, "secrets[0].value"),
        (["a.test"], [given("a.test", value="\ud800")], ["*"], SECRET, "secrets[0].value"),
        (["a.test"], [given("a.test")] * 51, ["*"], SECRET, "secrets"),
        (["a.test"], [given("a.test", f"K{at}", "x" * 8_000) for at in range(9)], ["*"], SECRET, "secrets"),
        (["a.test"], [given("a.test"), given("a.test", value="other")], ["*"], TWICE, "secrets[1].name"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    domains: list[str], secrets: list[SimpleNamespace], bounds: list[str], code: str, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_policy(domains, secrets, egress_domains=bounds)
    written = param.replace("domains", f"{PARAM}.allowed_domains").replace("secrets", f"{PARAM}.domain_secrets")
    assert (refused.value.code, refused.value.param) == (code, written)
    assert all(secret.value not in refused.value.message for secret in secrets if secret.value)


def test_a_secret_of_two_domains_has_one_placeholder() -> None:
    made = make_policy(
        ["a.test", "*.b.test"], [given("a.test"), given("x.b.test"), given("a.test", "OTHER", "value 2")]
    )
    first, second, third = made.secrets
    assert first.placeholder == second.placeholder != third.placeholder
    assert made.secrets_for(Target("x.b.test", 443)) == (second,)
    assert made.secrets_for(Target("y.b.test", 443)) == ()


def test_placeholders_are_of_one_policy_alone() -> None:
    placeholders = {make_policy(["api.test"], [given()]).secrets[0].placeholder for _ in range(50)}
    assert len(placeholders) == 50
    assert all("secret value" not in placeholder for placeholder in placeholders)


def test_a_secret_does_not_show_its_value() -> None:
    made = make_policy(["api.test"], [given()])
    assert "a secret value" not in repr(made) + str(made.secrets) + f"{made.secrets[0]}"
