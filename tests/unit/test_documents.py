"""What is written down about the options is so."""

import re
from pathlib import Path

from loadbalancer.settings import Settings, environment_name, option_name

ROOT = Path(__file__).parent.parent.parent


def test_the_readme_lists_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| ([^|]+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    defaults = {option_name(name): field.default for name, field in Settings.model_fields.items()}
    told = {"None": "unset", "": "unset", "()": "unset", "False": "off"}
    assert dict(rows) == {
        option: told.get(str(default), f"`{default}`") for option, default in defaults.items()
    }


def test_the_compose_file_passes_every_option_on() -> None:
    passed = set(re.findall(r"^      (LB_[A-Z_]+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    fixed = {"LB_HOST", "LB_PORT"}  # the image's own; LB_PUBLISH says where they appear
    assert passed == {environment_name(name) for name in Settings.model_fields} - fixed


def test_the_architecture_names_every_dependency_and_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for dependency in re.findall(r'^    "([a-z-]+)>=', project, re.MULTILINE):
        assert re.search(rf"\b{dependency}\b", text), dependency
    for module in (ROOT / "loadbalancer").rglob("*.py"):
        if not module.name.startswith("__"):
            assert re.search(rf"\b{module.stem}\b", text), module
