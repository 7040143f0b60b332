"""What pyproject.toml cannot say.

Data files belong into an editable installation, too: setuptools asks its distribution `has_data` before it installs them
there, and has no such method; the one that it means is `has_data_files`.

README's relative links lead nowhere where a registry shows it, and no other address is known: there its pictures are
left out, and its links are their text.
"""

import re
from pathlib import Path

from setuptools import Distribution, setup

RELATIVE = r"\[([^\]]*)\]\((?![a-z]+:)[^)]*\)"


def without_relative_links(readme: str) -> str:
    return re.sub(RELATIVE, r"\1", re.sub(f"!{RELATIVE}\n*", "", readme))


if __name__ == "__main__":
    Distribution.has_data = Distribution.has_data_files
    setup(
        long_description=without_relative_links(Path("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
