"""Every picture that pages show is there, and a command of the repository makes it."""

from __future__ import annotations

import re

from tests.docs.pages import PAGES, ROOT, prose

TABLE = re.compile(
    r"^\| `(outputs/[^`]+\.(?:png|svg))` \| `(python scripts/[^`]+)` \|$", re.MULTILINE
)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")


def shown() -> set[str]:
    """Pictures of all pages, from the top of the repository."""
    found = set()
    for page in [*PAGES, *ROOT.glob("outputs/**/*.md")]:
        for place in ("".join(groups) for groups in PICTURE.findall(prose(page))):
            if "://" not in place:
                found.add((page.parent / place).resolve().relative_to(ROOT).as_posix())
    return found


def makers() -> dict[str, str]:
    return dict(TABLE.findall((ROOT / "docs" / "contributing.md").read_text()))


def test_pictures_are_there_and_have_a_maker() -> None:
    assert shown() == set(makers())
    assert all((ROOT / name).is_file() for name in makers())
    kept = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("outputs/benchmark/*.png")}
    assert kept == set(makers())


def test_makers_are_commands_that_draw_them() -> None:
    drawn = "".join(
        path.read_text() for path in (ROOT / "metalearn" / "cli" / "commands").glob("benchmark.py")
    )
    suites = "".join(path.read_text() for path in ROOT.glob("metalearn/benchmarks/suites.py"))
    for name, command in makers().items():
        assert (ROOT / command.split()[1]).is_file()
        stem = name.rpartition("/")[2].removesuffix(".png")
        assert f'"{stem}"' in drawn + suites
