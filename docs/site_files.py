"""A hook of mkdocs: build the site from the repository, so that its links work there too."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

#: Pages, and whatever they show or link to.
PATTERNS = (
    *("*.md", "CITATION.cff", "LICENSE", "docs/*.md", "docs/figures/*", "findings/**/*.*"),
    *("configs/*", "examples/*.*"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of the folder docs/ by those of the repository, at their paths there."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()})
    found = [
        File(
            path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls
        )
        for path in paths
    ]
    return Files([*theme, *found])
