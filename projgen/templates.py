"""The templates of ``templates/``, ready to render: the only module that knows Jinja.

Jinja takes longer to make Python code of a template than a process takes for all else before its
first result. So the code is kept in the cache, beside the kernels and under the same rules.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined, nodes
from jinja2.bccache import Bucket
from jinja2.ext import Extension

from projgen.cache import TEMPLATE, Store, cache_root, key_of, toolchain
from projgen.resources import resource_dir

if TYPE_CHECKING:
    from jinja2.parser import Parser

_CODE = "template.code"


@cache
def environment() -> Environment:
    """Where templates come from; an undefined name in one is an error."""
    return Environment(
        extensions=[_Insert],
        loader=FileSystemLoader(resource_dir("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        auto_reload=False,  # else each import in a macro looks at its file again
        bytecode_cache=_Kept(),
    )


class _Insert(Extension):
    """``{% insert macro(...) %}``: what a macro gives, in the place of this whole line."""

    tags = {"insert"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Output([parser.parse_expression()], lineno=line)


class _Bucket(Bucket):
    """A template's code, and the text that names its entry."""

    def __init__(self, environment: Environment, text: str, checksum: str) -> None:
        super().__init__(environment, key_of(text), checksum)
        self.text = text


class _Kept(BytecodeCache):
    """Templates' code in the cache. Where that cannot be used, there is nothing to say: it is
    said of the kernels, which cost more."""

    def get_bucket(
        self, environment: Environment, name: str, filename: str | None, source: str
    ) -> _Bucket:
        text = f"{{# {filename} #}}\n{source}"  # the code holds its file's name, for tracebacks
        bucket = _Bucket(environment, text, self.get_source_checksum(source))
        self.load_bytecode(bucket)
        return bucket

    def load_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            entry = _store().find(bucket.key)
            if entry is not None:
                bucket.load_bytecode(BytesIO((entry / _CODE).read_bytes()))

    def dump_bytecode(self, bucket: Bucket) -> None:
        assert isinstance(bucket, _Bucket)
        with suppress(OSError):
            store = _store()
            build = store.begin()
            try:
                (build / TEMPLATE).write_bytes(bucket.text.encode())
                (build / _CODE).write_bytes(bucket.bytecode_to_string())
                store.publish(build, bucket.key)
            finally:
                store.abandon(build)


def _store() -> Store:
    return Store.open(cache_root(), _toolchain())


@cache
def _toolchain() -> str:
    """Besides the template, its code depends on Jinja and on what this module tells it."""
    settings = sha256(Path(__file__).read_bytes()).hexdigest()
    return toolchain({"jinja": version("jinja2")}, settings)
