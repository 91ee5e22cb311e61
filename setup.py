"""All that is said of the package stands in pyproject.toml; here ``conf/`` is put into it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithSettings(build_py):
    """Copies the YAMLs beside the code; an editable installation reads them where they are."""

    def run(self) -> None:
        """Build the package, then its settings."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "metalearn" / "conf"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / "conf", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithSettings})
