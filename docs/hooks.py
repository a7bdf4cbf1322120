"""Hooks of mkdocs: generate pages from the code, resolve patterns in the navigation, refuse remote resources.

`mkdocs.yml` names this file under `hooks`. The generated pages are `commands.md` (the help of the commands),
`configuration.md` (the fields of `crossearth_jax/config.py` with their comments) and `datasets/<name>.md` (the README
of every dataset).
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import importlib
import io
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COMMANDS = ("main", "prepare", "report", "predict", "convert", "estimate_style", "export", "push", "replay")
_HOST = r"""=["']?(?:https?:)?//"""
REMOTE = re.compile(rf"<(?:script|img|iframe|source)\b[^>]*\ssrc{_HOST}|<link\b[^>]*stylesheet[^>]*href{_HOST}")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Link the repository at the foot of every page.

    `repo_url` would do so at the top, but its script asks the host for numbers of stars each time a page is read.
    """
    config.copyright = f'{config.copyright} · <a href="{repository_address()}">Source code</a>'
    return config


def repository_address() -> str:
    """Return the address of the repository, which is defined in `pyproject.toml`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, then resolve the patterns of the navigation."""
    pages = {
        "commands.md": commands_page,
        "configuration.md": configuration_page,
        **{f"datasets/{readme.parent.name}.md": _reader(readme) for readme in ROOT.glob("data/*/README.md")},
    }
    for uri, text in pages.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=text()))
    uris = sorted(file.src_uri for file in files.documentation_pages())
    named = set(entries(config.nav))
    config.nav = resolved(config.nav, [uri for uri in uris if uri not in named])
    if missing := sorted(set(uris) - set(entries(config.nav))):
        raise PluginError(f"no entry of nav in mkdocs.yml names or matches {', '.join(missing)}")
    return files


def on_post_page(output: str, page: Any, config: MkDocsConfig) -> str:
    """Refuse pages that would load something from another host when they are read."""
    if found := REMOTE.search(output):
        raise PluginError(f"{page.file.src_uri} loads {output[found.start() : found.end() + 60]!r} from elsewhere")
    return output


def _reader(path: Path) -> Callable[[], str]:
    return lambda: path.read_text("utf-8")


def entries(nav: Any) -> Iterator[str]:
    """Yield the pages and patterns of a navigation."""
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from entries(item)


def resolved(nav: Any, rest: list[str]) -> Any:
    """Return the navigation with patterns replaced by the pages of `rest` they match, and without empty sections."""
    if isinstance(nav, str):
        return nav
    if isinstance(nav, dict):
        return {title: pages for title, item in nav.items() if (pages := resolved(_listed(item), rest)) != []}
    found: list[Any] = []
    for item in nav:
        matches = fnmatch.filter(rest, item) if isinstance(item, str) and "*" in item else [resolved(item, rest)]
        found += [match for match in matches if match != {}]
    return found


def _listed(item: Any) -> Any:
    return [item] if isinstance(item, str) and "*" in item else item


def commands_page() -> str:
    """Return the page of all commands with their help."""
    sections = [
        "# Commands",
        "Each command prints its text below with `--help`. A mistake in the input ends a command with exit code 2 and "
        "one line that says what was found, what was expected and what to do. Ctrl-C ends it with exit code 130.",
        f"## crossearth\n\n```text\n{help_of('crossearth_jax.__main__').strip()}\n```",
    ]
    for name in COMMANDS:
        sections += [f"## {name}", f"```text\n{help_of(f'crossearth_jax.{name}').strip()}\n```"]
    return "\n\n".join(sections) + "\n"


def help_of(module: str) -> str:
    """Return what `python -m module --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return printed.getvalue()


def configuration_page() -> str:
    """Return the page with the fields of every class of the configuration, with default and comment."""
    text = (ROOT / "crossearth_jax" / "config.py").read_text("utf-8")
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    sections = [
        "# Configuration",
        "A configuration file in `configs/` returns a [`Config`](#config); any field can be changed on the command "
        "line, for example `--config.train.steps=4000`. Unknown fields are refused. The tables show the defaults of "
        "the classes; the experiments in `configs/` set other values.",
    ]
    for name, node in reversed(classes.items()):  # the whole before its parts
        if name.endswith("Config"):
            rows = "\n".join(
                f"| `{field}` | `{kind}` | {default} | {comment} |"
                for field, kind, default, comment in fields(node, text.splitlines())
            )
            head = "| field | type | default | meaning |\n|---|---|---|---|"
            sections += [f"## {name}", ast.get_docstring(node) or "", f"{head}\n{rows}"]
    return "\n\n".join(sections) + "\n"


def fields(node: ast.ClassDef, lines: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, type, default and comment of every field; the comment is behind the field or above it."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            default = "" if item.value is None else f"`{ast.unparse(item.value)}`"
            kind = ast.unparse(item.annotation).replace("|", "\\|")
            yield item.target.id, kind, default.replace("|", "\\|"), _comment(item, lines)


def _comment(item: ast.AnnAssign, lines: list[str]) -> str:
    behind = lines[item.lineno - 1].partition("  # ")[2]
    above: list[str] = []
    at = item.lineno - 2
    while not behind and lines[at].strip().startswith("# "):
        above.insert(0, lines[at].strip()[2:])
        at -= 1
    return (behind or " ".join(above)).replace("|", "\\|")
