"""What the house promises about its own structure, beside the layers that import-linter checks."""

import re
from pathlib import Path

import metalearn

LIBRARY = Path(metalearn.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))


def test_one_file_knows_the_private_names_of_functorch():
    private = re.compile(
        r"torch\._functorch|torch\._C\._functorch|_are_functorch_transforms_active"
    )
    knowing = [f.relative_to(LIBRARY).as_posix() for f in FILES if private.search(f.read_text())]
    assert knowing == ["core/_functorch.py"]
