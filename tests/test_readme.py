"""What README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.splitlines()[0])
def test_python_of_the_readme_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_shows_python() -> None:
    assert len(BLOCKS) >= 2


def test_files_that_the_readme_names_exist() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(r"experiment=(\w+)", README):
        assert (root / "conf" / "experiment" / f"{name}.yaml").is_file(), name
    for name in re.findall(r"python (scripts/\w+\.py)", README):
        assert (root / name).is_file(), name
