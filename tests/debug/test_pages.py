"""`debug.show`: a page with all stages that loads nothing and connects lines, programs and kernels."""

from __future__ import annotations

import base64
import gzip
import html
import os
import re

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.core import errors

X = np.ones((8, 16), np.float32)


def model(x, w):
    hidden = inp.tanh(x @ w)
    return hidden / hidden.sum(-1, keepdims=True)


def unpacked(page: str) -> str:
    """The page with what is compressed in its place."""
    return re.sub(
        r'<template data-packed="([^"]*)"></template>',
        lambda m: gzip.decompress(base64.b64decode(m[1])).decode(),
        page,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of `model`."""
    place = tmp_path_factory.mktemp("pages") / "deep" / "model.html"
    return inf.debug.show(inf.jit(model), X, X.T.copy(), path=place)


def test_it_is_a_path_and_says_where_it_is(tmp_path, capsys):
    found = inf.debug.show(lambda x: x + 1, X, path=tmp_path / "page.html")
    assert os.fspath(found) == str(found) == str(tmp_path / "page.html")
    assert capsys.readouterr().out == f"wrote {found}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_without_a_path_it_lies_in_the_folder_of_dumps(tmp_path):
    with inf.config(dump_dir=str(tmp_path)):
        found = inf.debug.show(inf.jit(model).lower(X, X.T.copy()))
    assert found.path.parent == tmp_path and re.fullmatch(r"model\.\w{8}\.html", found.path.name)


def test_it_loads_nothing(page):
    content = page.read()
    assert not re.search(r"(?:src|href)=\"(?!#)|url\(|@import|https?://", unpacked(content))


def test_every_stage_is_there(page):
    content = unpacked(page.read())
    plain = html.unescape(re.sub(r"<[^>]+>", "", content))
    for needed in ("traced", "fuse", "kernels", "define", "nounwind", ".section", "grid (", "store out0["):
        assert needed in plain


def test_links_lead_somewhere(page):
    content = unpacked(page.read())
    ids = set(re.findall(r'\bid="([^"]+)"', content))
    links = set(re.findall(r'href="#([^"]+)"', content))
    assert links <= ids and any(link.startswith("kernel-") for link in links)
    assert len(re.findall(r'\bid="([^"]+)"', content)) == len(ids)


def test_lines_of_the_user_stand_beside_what_became_of_them(page):
    content = unpacked(page.read())
    assert "hidden = inp.tanh(x @ w)" in html.unescape(content)
    own = set(re.findall(r'data-line="([^"]+)" data-source', content))
    used = set(re.findall(r'<li(?: class="new")? data-line="([^"]+)"><code>', content))
    assert len(own) == 2 and used == own


def test_a_notebook_gets_the_page_itself(page):
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and html.unescape(shown).count(page.read()) == 1


def test_loops_and_programs_inside_are_shown(tmp_path):
    def f(x):
        return lax.scan(lambda c, r: (c + inp.exp(r), c.sum()), x[0], x)

    content = unpacked(inf.debug.show(f, X, path=tmp_path / "f.html").read())
    assert 'id="traced-body"' in content or re.search(r'id="traced-[\w.]+"', content)
    assert "scan" in content and "exp" in content


def test_other_backends_show_the_program(tmp_path):
    x = inf.device_put(X, inf.devices("reference")[0])
    content = inf.debug.show(inf.jit(lambda x: x * 2), x, path=tmp_path / "f.html").read()
    assert "backend reference" in content and ">mul<" in content


def test_what_is_no_function_is_refused():
    with pytest.raises(errors.TypeMismatchError, match="there is no program of this"):
        inf.debug.show(3)
    with pytest.raises(errors.TypeMismatchError, match="has its arguments already"):
        inf.debug.show(inf.jit(model).lower(X, X.T.copy()), X)
