"""The page's files: nothing from elsewhere, nothing inline, nothing that builds markup from data."""

import hashlib
import re
from pathlib import Path

import pytest

from learnmech.dashboards import page, panels

STATIC = page.folder()
SCRIPTS = sorted((STATIC / "js").glob("*.js"))
STYLES = sorted((STATIC / "css").glob("*.css"))
INDEX = (STATIC / "index.html").read_text(encoding="utf-8")


def test_vendored_uplot_is_the_one_that_was_looked_at() -> None:
    folder = STATIC / "vendor" / "uplot"
    assert {path.name for path in folder.iterdir()} == set(page.UPLOT_SHA256)
    for name, checksum in page.UPLOT_SHA256.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert f"v{page.UPLOT_VERSION}" in (folder / "uPlot.iife.min.js").read_text(encoding="utf-8")[:200]
    assert "MIT License" in (folder / "LICENSE").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_is_there() -> None:
    named = re.findall(r'(?:src|href)="page/([^"]+)"', INDEX)
    assert len(named) >= 7
    for path in named:
        assert (STATIC / path).is_file()
    for script in SCRIPTS:
        for path in re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8")):
            assert (script.parent / path).is_file()


def test_every_module_is_reached_from_the_entry() -> None:
    reached, waiting = set(), ["app.js"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += re.findall(r'from "\./([^"]+)"', (STATIC / "js" / name).read_text(encoding="utf-8"))
    assert reached | {"theme.js"} == {script.name for script in SCRIPTS}


def test_every_import_is_exported() -> None:
    exported = {
        script.name: set(
            re.findall(
                r"^export (?:async )?(?:function|class|const) (\w+)", script.read_text(encoding="utf-8"), re.MULTILINE
            )
        )
        for script in SCRIPTS
    }
    for script in SCRIPTS:
        for group, source in re.findall(r'import \{([^}]*)\} from "\./([^"]+)"', script.read_text(encoding="utf-8")):
            assert {name.strip() for name in group.split(",") if name.strip()} <= exported[source], (
                f"{script.name} from {source}"
            )


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert not re.search(r'(?:src|href)="(?:https?:)?//', INDEX)
    for path in [*SCRIPTS, *STYLES]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(", text)
        links = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert links <= {"http://www.w3.org/2000/svg", "https://arxiv.org/abs/${match[1]}"}, (
            "links a reader may click, no loads"
        )


def test_nothing_is_inline() -> None:
    """`default-src 'self'` refuses inline scripts, styles, handlers and style attributes."""
    assert not re.search(r"<script(?![^>]*\bsrc=)", INDEX)
    assert "<style" not in INDEX
    assert not re.search(r"\s(?:style|on\w+)=", INDEX)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_data_never_becomes_markup_or_code(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(.style", text
    )


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_files_hold_one_idea_each(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300
    if path.suffix == ".js":
        assert path.read_text(encoding="utf-8").startswith("// ")


def test_every_custom_property_that_is_used_is_defined() -> None:
    styles = "\n".join(path.read_text(encoding="utf-8") for path in STYLES)
    defined = set(re.findall(r"(--[\w-]+):", styles))
    used = set(re.findall(r"var\((--[\w-]+)\)", styles))
    used |= {
        name for script in SCRIPTS for name in re.findall(r'css\("(--[\w-]+)"', script.read_text(encoding="utf-8"))
    }
    assert used <= defined
    blocks = re.split(r"(?=:root)", (STATIC / "css/theme.css").read_text(encoding="utf-8"))
    colours = [set(re.findall(r"(--[\w-]+): (?:#|rgba)", block)) for block in blocks if "--page:" in block]
    assert len(colours) == 2
    assert colours[0] == colours[1], "a colour of the light theme has its counterpart in the dark one"


def test_every_section_and_its_link_go_when_nothing_in_it_was_measured() -> None:
    styles = (STATIC / "css" / "panels.css").read_text(encoding="utf-8")
    for section in panels.TITLES:
        assert f'#{section} .observable:not(.none))) .sections [href="#{section}"]' in styles
