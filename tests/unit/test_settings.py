"""The sources of options, options that may be given more than once, and options that need others."""

import re
from pathlib import Path
from typing import Any

import pytest

from loadbalancer.cli.sources import SettingsError, load
from loadbalancer.settings import Settings, option_name

TWO = ("10.0.0.0/8", "2001:db8::/32")


def settings(
    options: dict[str, Any] | None = None,
    toml: str = "",
    environ: dict[str, str] | None = None,
    *,
    folder: Path,
) -> Settings:
    config = folder / "lb.toml"
    config.write_text(toml)
    return load(options or {}, config, environ or {})


@pytest.mark.parametrize(
    ("options", "toml", "environ"),
    [
        ({"trusted_proxies": TWO}, "", {}),
        ({"trusted_proxies": ()}, "", {"LB_TRUSTED_PROXIES": "10.0.0.0/8\n2001:db8::/32"}),
        ({}, "", {"LB_TRUSTED_PROXIES": "\n  10.0.0.0/8 \r\n\n2001:db8::/32\n"}),
        ({}, 'trusted-proxies = ["10.0.0.0/8", "2001:db8::/32"]', {}),
        ({"trusted_proxies": TWO}, 'trusted_proxies = ["::1"]', {"LB_TRUSTED_PROXIES": "127.0.0.1"}),
        ({}, 'trusted_proxies = ["::1"]', {"LB_TRUSTED_PROXIES": "\n".join(TWO)}),
    ],
)
def test_every_source_may_give_several_values_of_an_option(
    tmp_path: Path, options: dict[str, Any], toml: str, environ: dict[str, str]
) -> None:
    assert settings(options, toml, environ, folder=tmp_path).trusted_proxies == TWO


def test_an_option_with_several_values_may_be_missing(tmp_path: Path) -> None:
    assert settings(folder=tmp_path).trusted_proxies == ()
    assert (
        settings({"trusted_proxies": ()}, environ={"LB_TRUSTED_PROXIES": ""}, folder=tmp_path).trusted_proxies
        == ()
    )


def test_options_pass_unchanged_to_a_worker() -> None:
    before = Settings.model_validate({"trusted_proxies": TWO, "proxy_protocol": True})
    assert Settings.model_validate(before.model_dump(mode="json", exclude={"admin_token"})) == before


@pytest.mark.parametrize(
    ("options", "toml", "environ", "sentence"),
    [
        (
            {"trusted_proxies": ("10.0.0.0/33",)},
            "",
            {},
            "--trusted-proxies: '10.0.0.0/33' must be an address or a",
        ),
        ({"trusted_proxies": (TWO[0], "")}, "", {}, "--trusted-proxies: '' must be"),
        ({}, "", {"LB_TRUSTED_PROXIES": "::1\nproxy"}, "LB_TRUSTED_PROXIES: 'proxy' must be"),
        ({}, "trusted-proxies = [5]", {}, "lb.toml: 5 should be a valid string"),
        ({}, "trusted-proxies = 5", {}, "lb.toml: 5 should be a valid tuple"),
        ({"proxy_protocol": True}, "", {}, "--proxy-protocol: has no effect without --trusted-proxies"),
        (
            {"lane": "asgi", "trusted_proxies": TWO},
            "",
            {"LB_PROXY_PROTOCOL": "1"},
            "LB_PROXY_PROTOCOL: needs the fast lane, not --lane asgi",
        ),
        (
            {"tunnel_idle_timeout": "-1"},
            "",
            {},
            "--tunnel-idle-timeout: '-1' should be greater than or equal to 0",
        ),
    ],
)
def test_an_impossible_value_is_named_with_its_source(
    tmp_path: Path, options: dict[str, Any], toml: str, environ: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(options, toml, environ, folder=tmp_path)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_readme_repeats_the_help_of_every_option() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        row = rf"^\| `{option_name(name)}` \| .*? \| {re.escape(field.description or '-')}"
        assert re.search(row, readme, re.MULTILINE), f"{option_name(name)}: {field.description}"


def test_the_name_of_a_variable_is_in_upper_case() -> None:
    assert load({}, None, {"LB_REPLICAS": "5", "lb_port": "6000", "PORT": "7000"}) == Settings.model_validate(
        {"replicas": 5}
    )
