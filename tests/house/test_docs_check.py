"""The documentation checks find what is wrong, on small documents, and pass what is right."""

import importlib
import subprocess
import sys

import pytest


@pytest.fixture
def checks(repository, monkeypatch):
    """The modules of scripts/docs_check."""
    monkeypatch.syspath_prepend(str(repository))
    names = ("markdown", "blocks", "links", "tree", "shell")
    return {name: importlib.import_module(f"scripts.docs_check.{name}") for name in names}


@pytest.fixture
def problems(checks, repository, tmp_path):
    """From the text of a document to what is wrong with its code."""

    def run(text):
        path = tmp_path / "page.md"
        path.write_text(text, encoding="utf-8")
        return list(checks["blocks"].problems(checks["markdown"].parse(path), repository))

    return run


def fence(language, text, before=""):
    return f"# Title\n\n{before}\n\n```{language}\n{text}\n```\n"


@pytest.mark.parametrize(
    ("language", "text", "said"),
    [
        ("python", "x = = 1", "invalid syntax"),
        ("python", "import learnmech.observables as o\no.get('sharpnes')", "UnknownObservable"),
        ("sql", "SELECT step, velue FROM observations;", "no such column: velue"),
        ("sql", "SELECT step, value FROM observation", "no such table"),
        ("json", "{'a': 1}", "not json"),
        ("yaml", "a: [1", "not yaml"),
        ("toml", "a = ", "not toml"),
        ("bash", "learnmech colect", "learnmech colect: no such command"),
        ("bash", "learnmech runs --jsn", "no option --jsn"),
        ("bash", "make test && make tset", "make tset: no such target"),
        ("bash", "pip install 'learnmech[probe]'", "no extra 'probe'"),
        ("bash", "python examples/none.py", "no such file"),
        ("bash", "if true; do", "not a shell script"),
        ("", "plain", "the fence says 'nothing'"),
    ],
)
def test_wrong_code_is_found(language, text, said, problems):
    found = problems(fence(language, text))
    assert len(found) == 1, found
    assert said in found[0]
    assert "page.md:5" in found[0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "import learnmech.observables as o\nassert o.get('sharpness').symbol"),
        ("sql", "SELECT step, value FROM observations WHERE run = :run;\nSELECT * FROM residuals"),
        ("console", "$ learnmech runs --json\nanything at all: --jsn"),
        ("bash", "LEARNMECH_PORT=1 learnmech collect --db sqlite:///x.db  # serve"),
        ("bash", "make demo ARGS=--quick"),
        ("bash", "pip install 'learnmech[probes,collector]'"),
        ("text", "anything"),
    ],
)
def test_right_code_passes(language, text, problems):
    assert not problems(fence(language, text))


def test_blocks_of_a_document_share_names_and_database(problems):
    text = (
        fence("python", "answer = 42")
        + fence("python", "import sqlite3\ndb = sqlite3.connect('learnmech.db')\ndb.execute('create table mine(x)')")
        + fence("sql", "SELECT x FROM mine")
        + fence("python", "assert answer == 42")
    )
    assert not problems(text)


def test_every_failing_block_is_named(problems):
    (report,) = problems(fence("python", "1 / 0") + fence("python", "fine = 1") + fence("python", "[][1]"))
    assert "page.md:5 fails" in report
    assert "page.md:19 fails" in report
    assert "page.md:12" not in report


def test_a_block_may_say_why_it_is_not_run(problems):
    assert not problems(fence("python", "import nothing_like_this", "<!-- not run: it needs a cluster -->"))
    assert problems(fence("python", "x = = 1", "<!-- not run: it needs a cluster -->")), "it must compile all the same"


def test_a_block_may_build_on_a_script(problems, tmp_path):
    (tmp_path / "before.py").write_text("answer = 42\n", encoding="utf-8")
    assert not problems(fence("python", "assert answer == 42", f"<!-- after: {tmp_path / 'before.py'} -->"))


def test_links(checks, tmp_path):
    (tmp_path / "other.md").write_text("# One `x` thing\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#one-x-thing) [c](#here) [d](other.md#twice-1) [e](https://example.com/x)\n"
        "[f](none.md) [g](other.md#none) [h](#none) ![i](none.png) [j](/etc/passwd)\n",
        encoding="utf-8",
    )
    found = list(checks["links"].broken(checks["markdown"].parse(page), checks["markdown"].parse))
    assert [sentence.split()[1] for sentence in found] == [
        "none.md",
        "other.md#none",
        "#none",
        "none.png",
        "/etc/passwd",
    ]


def test_foreign_paths_and_hosts(checks, tmp_path):
    lines = ["/".join(parts) for parts in (("", "root", "x"), ("", "home", "ann", "x"), ("at pypi.org", "simple", "x"))]
    near = (("https://example.org", "root", "x"), ("frame", "work", "x"), ("$HOME", "root", "x"), ("~", "work", "x"))
    fine = ["/".join(parts) for parts in near]
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(lines + fine), encoding="utf-8")
    found = list(checks["tree"].foreign(path, tmp_path))
    assert [sentence.split(":")[1] for sentence in found] == ["1", "2", "3"]


@pytest.mark.parametrize(("example", "fails"), [(">>> 1 + 1\n2", False), (">>> 1 + 1\n3", True), (">>> nothing", True)])
def test_examples_in_docstrings_are_run(example, fails, repository, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(repository))
    examples = importlib.import_module("scripts.docs_check.examples")
    module = tmp_path / "core" / "learnmech" / "sample" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text(f'"""An example.\n\n{example}\n"""\n', encoding="utf-8")
    assert examples.modules(tmp_path) == ["learnmech.sample"]
    assert bool(list(examples.problems(tmp_path))) == fails


def test_examples_are_found(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository))
    examples = importlib.import_module("scripts.docs_check.examples")
    assert "learnmech.observables" in examples.modules(repository)


def test_reference_is_what_the_code_says(repository):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reference", "--check"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_reference_enumerates(repository):
    """Counted apart from the code that writes the pages."""
    from learnmech import laws, observables
    from learnmech.collector.store.views import VIEWS
    from learnmech.dashboards.panels import catalogue

    pages = {path.stem: path.read_text(encoding="utf-8") for path in (repository / "docs" / "reference").glob("*.md")}
    assert not [one.name for one in observables.catalogue() if f"| `{one.name}` |" not in pages["observables"]]
    assert not [law.name for law in laws.catalogue() if f"\n`{law.name}`, version" not in pages["laws"]]
    assert not [name for name in VIEWS if f"\n## {name}\n" not in pages["views"]]
    for command in ("collect", "demo", "judge", "runs", "laws", "observables", "dashboards"):
        assert f"\n## learnmech {command}" in pages["commands"], command
    for probe in ("MechanicsMonitor", "Recorder", "Sharpness", "GradientNoiseScale", "WeightDynamics"):
        assert f"\n## {probe}\n" in pages["probes"], probe
    assert not [panel.id for panel in catalogue() if f"\n`{panel.id}`: " not in pages["panels"]]
    for variable in ("LEARNMECH_DB", "LEARNMECH_TOKEN", "LEARNMECH_SPOOL"):
        assert f"| `{variable}` |" in pages["settings"], variable
    for route in ("POST /v1/measurements", "GET /v1/runs", "GET /v1/stream", "GET /healthz", "GET /metrics"):
        assert f"\n## {route}\n" in pages["http"], route
