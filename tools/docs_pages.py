"""The pages of the documentation that are made from the sources; a hook of mkdocs (``mkdocs.yml`` names it).

``pages()`` gives path -> Markdown. What it says of components, recipes, commands, hooks and ops is read from the
objects themselves, so that it cannot say anything else than they do.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import kdx
from kdx import hookspecs
from kdx.cli.app import app
from kdx.experiment.components import SUPPLIED
from kdx.experiment.recipe import Recipe
from kdx.options import options_of
from kdx.ref import Ref
from kdx.registry import KINDS, Kind, default_plugins

ROOT = Path(__file__).parents[1]
TITLES = {
    "knowledge": "Knowledge",
    "scheme": "Schemes",
    "assistant": "Assistants",
    "model": "Models",
    "dataset": "Data sets",
    "task": "Tasks",
    "student": "Students",
}
READMES = {
    "knowledge": "kdx/knowledge",
    "scheme": "kdx/schemes",
    "assistant": "kdx/assistants",
    "student": "kdx/students",
}
EXTRA = {
    "components/store.md": "kdx/store/README.md",
    "kernels/benchmarks.md": "bench/README.md",
    "plugins/kdx-prune.md": "plugins/kdx-prune/README.md",
    "plugins/kdx-quant.md": "plugins/kdx-quant/README.md",
    "plugins/kdx-search.md": "plugins/kdx-search/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def pages() -> dict[str, str]:
    """Path below the documentation -> Markdown, of every generated page."""
    found = {f"components/{kind}.md": components(kind) for kind in KINDS if kind in TITLES}
    found |= {"reference/recipe.md": recipe(), "reference/cli.md": commands(), "reference/hooks.md": hooks()}
    found |= {"reference/environment.md": environment(), **api()}
    for family in kernels():
        found[f"kernels/{family}.md"] = readme(ROOT / f"kdx/ops/_{family}/README.md") + signatures(family)
    found |= {page: readme(ROOT / path) for page, path in EXTRA.items() if (ROOT / path).exists()}
    return found


def images() -> dict[str, Path]:
    """Path below the documentation -> picture that a generated page shows."""
    return {
        f"kernels/results/{path.relative_to(ROOT / 'bench/results')}": path
        for path in (ROOT / "bench/results").rglob("*.png")
    }


def on_files(files: Any, *, config: Any) -> Any:
    """Called by mkdocs: adds the generated pages and their pictures."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for path, picture in images().items():
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def readme(path: Path) -> str:
    """A README of the sources; links to files that are no page become plain text."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"https?://|#", target) or (match[0].startswith("!") and target.startswith("results/")):
            return match[0]
        if match[0].startswith("!") and "bench/results/" in target:
            return f"![{text}](../kernels/results/{target.split('bench/results/')[1]})"
        return text

    return re.sub(r"!?\[([^\]]*)\]\(([^)\s]+)\)", link, path.read_text())


def components(kind: Kind) -> str:
    """One page a kind: the table of its README if there is one, then every component of kdx."""
    parts = []
    if kind in READMES and (path := ROOT / READMES[kind] / "README.md").exists():
        parts.append(readme(path))
    else:
        parts.append(f"# {TITLES[kind]}\n")
    plugins = default_plugins()
    parts.append("## All of them\n" if kind in READMES else "")
    for name, found in plugins.components(kind).items():
        item = next((item for item in found if item.plugin == "kdx-builtin"), None)
        if item is None:
            continue  # of a package that happens to be installed
        target = plugins.load(kind, name)
        parts.append(f"### {name}\n\n{item.spec.summary[:1].upper()}{item.spec.summary[1:]}.")
        if item.spec.paper:
            parts.append(f"*{item.spec.paper}*")
        parts.append(prose(target))
        parts.append(options(target, SUPPLIED.get(kind, frozenset())))
        parts.append(f"`{item.spec.target}`\n")
    return "\n\n".join(part for part in parts if part)


def prose(target: Any) -> str:
    """The text of a docstring without its arguments, with its example as code."""
    parsed = docstring_parser.parse(inspect.getdoc(target) or "")
    text = "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))
    text += "".join(f"\n\nRaises `{item.type_name}`: {item.description}" for item in parsed.raises)
    text = roles(text)
    for example in parsed.examples:
        text += f"\n\n```pycon\n{inspect.cleandoc(example.snippet or example.description or '')}\n```"
    return text


def roles(text: str) -> str:
    """Sphinx roles and double backticks as Markdown code; admonition-like ``::`` blocks as code blocks."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return re.sub(
        r"::\n\n((?:    .*\n?)+)", lambda block: ":\n\n```python\n" + inspect.cleandoc(block[1]) + "\n```\n", text
    )


def options(target: Any, supplied: frozenset[str]) -> str:
    """A table of a component's options."""
    rows = [option for option in options_of(target) if option.name not in supplied]
    if not rows:
        return "No options."
    lines = ["| option | type | default | |", "|---|---|---|---|"]
    for option in rows:
        default = "required" if option.required else f"`{option.default!r}`"
        lines.append(f"| `{option.name}` | `{cell(option.type_name)}` | {cell(default)} | {cell(roles(option.doc))} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def recipe() -> str:
    """Every key of a recipe, from the models that check it."""
    lines = [
        "# Recipe reference\n",
        "Every key of a recipe, with its type and default. `kdx run NAME --dry-run` prints a recipe with all of them.",
        "A component is a mapping with `name` and that component's options, or its name alone. One of `knowledge` has "
        "a `weight` beside them, 1.0 by default: a number, or `{kind: warmup, to: 0.9, steps: 100}`, `{kind: cosine, "
        "start: 0.9}` or `{kind: balanced, ratio: 1.0}`.\n",
        *(f"- `{name}`: {text}" for name, text in recipes()),
        "",
    ]
    for path, model in sections(Recipe, ""):
        doc = roles(inspect.cleandoc(model.__doc__ or ""))
        lines += [f"## {path or 'Top level'}\n", f"{doc}\n", "| key | type | default | |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else f"`{shown(field)}`"
            lines.append(
                f"| `{path + '.' if path else ''}{name}` | `{cell(type_name(field.annotation))}` | {cell(default)} "
                f"| {cell(roles(field.description or ''))} |"
            )
        lines.append("")
    return "\n".join(lines)


def recipes() -> Iterator[tuple[str, str]]:
    """Name and summary of the recipes that come with kdx."""
    from kdx.experiment.recipe_files import load_recipe, recipe_names

    for name in recipe_names():
        yield name, load_recipe(name).summary


def shown(field: Any) -> str:
    """A default as one writes it in a recipe."""
    value = field.default if field.default is not PydanticUndefined else field.default_factory()
    if isinstance(value, Ref):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.as_dict().items()) + "}"
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_unset=True)
        return "{" + ", ".join(f"{key}: {item}" for key, item in given.items()) + "}"
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections of a recipe with their paths, outermost first."""
    yield path, model
    for name, field in model.model_fields.items():
        inner = next((part for part in parts_of(field.annotation) if issubclass_of_model(part)), None)
        if inner is not None:
            many = get_origin(field.annotation) in (dict, list) or any(
                get_origin(part) in (dict, list) for part in get_args(field.annotation)
            )
            yield from sections(inner, f"{path + '.' if path else ''}{name}{'.NAME' if many else ''}")


def parts_of(annotation: Any) -> Iterator[Any]:
    """The types an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from parts_of(part)


def issubclass_of_model(part: Any) -> bool:
    """Whether a part of an annotation is a section."""
    return inspect.isclass(part) and get_origin(part) is None and issubclass(part, BaseModel)


def type_name(annotation: Any) -> str:
    """An annotation as a reader of recipes writes it."""
    if get_origin(annotation) is Literal:
        return " | ".join(repr(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(type_name(part) for part in get_args(annotation))
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) is not None:
        inner = ", ".join(type_name(part) for part in get_args(annotation))
        return f"{get_origin(annotation).__name__}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def commands() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    lines = ["# Command line\n", f"{group.help}\n"]
    for path, command in leaves(group, "kdx"):
        lines += [f"## {path}\n", f"{inspect.cleandoc(command.help or '')}\n", "| | | default |", "|---|---|---|"]
        for parameter in command.params:
            named = ", ".join(f"`{option}`" for option in parameter.opts + parameter.secondary_opts)
            if parameter.param_type_name == "argument":
                named = f"`{parameter.metavar or parameter.name.upper()}`"
            default = "" if parameter.default in (None, False) or parameter.required else f"`{parameter.default}`"
            lines.append(f"| {named} | {cell(getattr(parameter, 'help', None) or '')} | {default} |")
        lines += ["", *([f"{command.epilog}\n"] if command.epilog else [])]
    return "\n".join(lines)


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """``kdx NAME`` and ``kdx GROUP NAME`` with their commands."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, f"{path} {name}")


def hooks() -> str:
    """Every hook with its signature."""
    lines = [
        "# Hooks\n",
        "A plugin is a module named by an entry point of group `kdx`; it implements hooks marked with `@kdx.hookimpl`.",
        "An implementation may leave arguments out. Implementations of an event are called in the order in which their",
        "plugins were registered.\n",
    ]
    for name, function in hook_functions():
        lines += [
            f"## {name}\n",
            f"```python\n{signature(function)}\n```\n",
            f"{roles(inspect.getdoc(function) or '')}\n",
        ]
    lines += ["## Spec\n", f"```python\n{signature(kdx.Spec)}\n```\n"]
    return "\n".join([*lines, prose(kdx.Spec), "", options(kdx.Spec, frozenset())])


def hook_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The hooks in the order of the file."""
    for name, value in vars(hookspecs).items():
        if name.startswith("kdx_") and callable(value):
            yield name, value


def environment() -> str:
    """The table of the README."""
    text = (ROOT / "README.md").read_text()
    section = re.search(r"## (Environment variables\n.*?)(?=\n## |\Z)", text, re.DOTALL)
    assert section is not None, "the README has no section on environment variables"
    return f"# {section[1]}"


def signature(target: Any) -> str:
    """Name and signature, one parameter a line where they are many, annotations as in the source."""
    found = inspect.signature(target, eval_str=False)
    plain = found.format(max_width=100) if hasattr(found, "format") else str(found)
    return target.__name__ + re.sub(r"(: |-> )'([^']*)'", r"\1\2", plain)


def kernels() -> list[str]:
    """The ops with a folder of their own, which have a page each."""
    return [op.name for op in kdx.ops.OPS.values() if op.family is None]


def signatures(family: str) -> str:
    """The public functions of an op's folder, with their signatures."""
    names = [op.name for op in kdx.ops.OPS.values() if family in (op.name, op.family)]
    lines = ["\n## Functions\n"]
    for name in names:
        function = getattr(kdx.ops, name)
        lines += [f"### kdx.ops.{name}\n", f"```python\n{signature(function)}\n```\n"]
        lines += [f"{prose(function)}\n", f"{options(function, frozenset())}\n"]
    return "\n".join(lines)


def api() -> dict[str, str]:
    """Path -> page of every public package, for mkdocstrings to fill; that of ``kdx`` itself lists the others."""
    found = {f"reference/api/{package.removeprefix('kdx.')}.md": package_page(package) for package in packages("kdx")}
    lines = ["# Python\n", "`import kdx` loads nothing else; each name is loaded when it is first used.\n"]
    lines += ["| package | |", "|---|---|"]
    for package in packages("kdx"):
        summary = prose(import_module(package)).partition("\n")[0]
        lines.append(f"| [{package}](api/{package.removeprefix('kdx.')}.md) | {cell(summary)} |")
    return {"reference/api.md": "\n".join([*lines, "", *entries("kdx")]), **found}


def packages(name: str) -> Iterator[str]:
    """The public packages below a package, and below those."""
    module = import_module(name)
    for inner in module.__all__:
        if inspect.ismodule(getattr(module, inner)):
            yield f"{name}.{inner}"
            yield from packages(f"{name}.{inner}")


def package_page(package: str) -> str:
    """Every public name of a package."""
    return "\n".join([f"# {package}\n", f"{prose(import_module(package))}\n", *entries(package)])


def entries(package: str) -> Iterator[str]:
    """The public names: in full for mkdocstrings, or a link where another page has them."""
    module = import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value) or name == "__version__":
            continue
        home = next((other for other in packages("kdx") if package == "kdx" and shares(other, name, value)), None)
        if home is not None:
            page = home.removeprefix("kdx.")
            yield f"### {package}.{name}\n\nThe same as [{home}.{name}](api/{page}.md#{home}.{name}).\n"
        else:
            yield f"::: {package}.{name}\n    options:\n      heading: {package}.{name}\n      toc_label: {name}\n"


def shares(package: str, name: str, value: Any) -> bool:
    """Whether a package has the same object under the same name."""
    return getattr(import_module(package), name, None) is value
