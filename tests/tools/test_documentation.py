"""The pages that the documentation site is made of, and every link between the documents."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import documentation  # noqa: E402

from detector.cli.main import COMMANDS  # noqa: E402

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), ROOT / "data/README.md", ROOT / "weights/README.md", *ROOT.glob("docs/**/*.md"))
)
GUIDES = [name for name in DOCUMENTS if name.startswith("docs/guides/")]
SCREEN_LINES = 40  # of about 90 characters


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a document, as code hosts and MkDocs make them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_to_a_file_and_a_heading(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", without_code((ROOT / document).read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            file = (ROOT / document).parent / path if path else ROOT / document
            is_known = file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))
            broken += [] if is_known else [target]
    assert not broken


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_has_its_first_command_within_two_screens(guide: str) -> None:
    text = (ROOT / guide).read_text(encoding="utf-8")
    before = text[: re.search(r"^```", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    assert sum(1 + len(line) // 90 for line in before.splitlines()) < 2 * SCREEN_LINES


def test_every_document_is_in_the_navigation() -> None:
    text = re.sub(r"!!python/\S+ ", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w./-]+\.md", str(yaml.safe_load(text)["nav"])))
    pages = {documentation.page_of(name, "index.md") for name in DOCUMENTS if name != "docs/images/README.md"}
    notebooks = {f"notebooks/{path.stem}.md" for path in ROOT.glob("docs/notebooks/*.ipynb")}
    assert named == pages | notebooks | set(documentation.API_PAGES) | {"commands.md"}


def test_links_between_files_become_links_between_pages() -> None:
    text = "[a](docs/gpu.md#x), ![b](docs/images/demo.jpg), [c](weights/README.md), [d](LICENSE), [e](https://x.org)"
    made = "[a](gpu.md#x), ![b](images/demo.jpg), [c](models.md), d, [e](https://x.org)"
    assert documentation.relinked(text, "README.md", "index.md") == made
    text = "[a](../../README.md), [b](../notebooks/detect.ipynb), `[c](d)`\n```\n[e](../gpu.md)\n```\n"
    made = "[a](../index.md), [b](../notebooks/detect.md), `[c](d)`\n```\n[e](../gpu.md)\n```\n"
    guide = "guides/python.md"
    assert documentation.relinked(text.replace("`[c](d)`", ""), f"docs/{guide}", guide) == made.replace("`[c](d)`", "")


def test_reference_of_commands_has_every_command_and_option() -> None:
    page = documentation.command_page()
    for name in COMMANDS:
        assert f"## `detector {name}`" in page
    train = page.partition("## `detector train`")[2].partition("\n## ")[0]
    assert "| `--dry-run` | build everything" in train
    assert "detector train mish-n data=data.yaml train.epochs=50" in train
    assert "`--quiet`" not in train  # it is in the table of all commands
    assert page.count("`--quiet`") == 1


def test_objects_of_the_reference_of_python_exist() -> None:
    for _, _, names in documentation.API_PAGES.values():
        for name in names:
            module, _, last = name.rpartition(".")
            source = ROOT / f"{module.replace('.', '/')}.py"
            whole = ROOT / f"{name.replace('.', '/')}.py"
            pattern = rf"^(class|def) {last}\b"
            assert whole.is_file() or re.search(pattern, source.read_text(encoding="utf-8"), re.MULTILINE), name


def test_notebook_becomes_a_page_with_its_texts_and_code() -> None:
    page = documentation.notebook_page(ROOT / "docs/notebooks/detect.ipynb")
    assert page.startswith("# Detect objects\n")
    assert "[Download the notebook](detect.ipynb)" in page
    assert "```python\nfrom detector import Detector\n" in page


@pytest.mark.nightly
def test_site_is_built_without_a_warning_and_without_resources_of_other_hosts(tmp_path: Path) -> None:
    mkdocs = ROOT / ".venv-docs/bin/mkdocs"
    found = str(mkdocs) if mkdocs.exists() else shutil.which("mkdocs")
    if found is None:
        pytest.skip("MkDocs is not installed; `make docs` installs it")
    command = [found, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True)
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:link|script|img|iframe)[^>]+(?:href|src)=\"?https?:", text), page
